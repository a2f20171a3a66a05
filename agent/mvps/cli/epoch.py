# SPDX-License-Identifier: Apache-2.0
"""``mvps epoch``: the operator writes, signs, shows, checks and revokes.

A draft is the text of a manifest without a signature. It may be edited by hand: what does not have the one form its
content has is refused with the line that is wrong.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvps.cli import exits
from mvps.cli.actions import actions_of, add_out, give, read, read_text, rewrite, say

if TYPE_CHECKING:
    from mvps.trust.keys import PublicKey
    from mvps.trust.manifest import Manifest

PROFILES = ("cwt", "trust")  # mvps.trust.manifest.Profile, without its imports
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def declare(_verb: str, parser: argparse.ArgumentParser) -> None:
    """Arguments of ``mvps epoch``."""
    add = actions_of(parser)
    _declare_new(
        add(
            "new",
            "write a draft: of a first epoch, or of the one after PREVIOUS with the same members",
            "examples:\n"
            "  mvps epoch new --operator-id acme --broker broker.pub --out epoch-1.draft\n"
            "  mvps epoch new --from epoch-1.manifest --operator operator.pub --out epoch-2.draft\n"
            "  mvps epoch new --from epoch-2.manifest --operator operator.pub --profile trust --out epoch-3.draft",
        )
    )
    sign = add(
        "sign",
        "check a draft and sign it",
        "examples:\n"
        "  mvps epoch sign epoch-1.draft --key operator.key --out epoch-1.manifest\n"
        "  mvps epoch sign epoch-2.draft --previous epoch-1.manifest --key operator.key --out epoch-2.manifest\n"
        "  mvps epoch sign epoch-2.draft --previous epoch-1.manifest --key operator.key --now --out epoch-2.manifest",
    )
    sign.add_argument("draft", type=Path, metavar="DRAFT", help="from mvps epoch new")
    sign.add_argument("--key", required=True, metavar="FILE", help="the operator's key file, or credential:NAME")
    sign.add_argument("--previous", type=Path, metavar="FILE", help="the signed manifest before it, if there is one")
    sign.add_argument("--now", action="store_true", help="let it begin now; its other times move with it")
    add_out(sign)
    show = add(
        "show",
        "print what a manifest or draft says, without checking who signed it",
        "examples:\n  mvps epoch show epoch-2.draft\n  mvps epoch show epoch-2.manifest --json | jq .vantages",
    )
    show.add_argument("file", type=Path, metavar="FILE", help="manifest or draft")
    show.add_argument("--json", action="store_true", help="one JSON object")
    verify = add(
        "verify",
        "check manifests: signature, f and quorum, and that each follows the one before",
        "examples:\n"
        "  mvps epoch verify /etc/mvps/epochs/*.manifest --operator operator.pub\n"
        "exit codes: 0 all hold, 1 one does not, 2 a file or key cannot be used",
    )
    verify.add_argument("files", nargs="+", type=Path, metavar="FILE", help="signed manifests, in any order")
    verify.add_argument("--operator", required=True, metavar="PUB", help="the operator's public key, or a file with it")
    verify.add_argument("--json", action="store_true", help="one JSON object")
    revoke = add(
        "revoke",
        "drop a vantage from a draft and refuse its key in every epoch",
        "examples:\n"
        "  mvps epoch revoke epoch-2.draft host-b\n"
        "  mvps epoch revoke epoch-2.draft host-b --key-id 0123456789abcdef      a key it had before, or a broker's\n"
        "It counts as soon as a broker has the signed manifest, whatever its `from` says.",
    )
    revoke.add_argument("draft", type=Path, metavar="DRAFT", help="from mvps epoch new")
    revoke.add_argument("vantage", metavar="VANTAGE", help="vantage id, or the name of a broker")
    revoke.add_argument("--key-id", type=_key_id, metavar="HEX", help="this key only; default: the one it has")
    parser.epilog = (
        "examples:\n"
        "  mvps epoch new --operator-id acme --broker broker.pub --out epoch-1.draft\n"
        "  mvps enroll approve host-a.request host-b.request --into epoch-1.draft\n"
        "  mvps epoch sign epoch-1.draft --key operator.key --out epoch-1.manifest\n"
        "  mvps epoch verify epoch-1.manifest --operator operator.pub"
    )


def _declare_new(new: argparse.ArgumentParser) -> None:
    new.add_argument("--from", dest="previous", type=Path, metavar="PREVIOUS", help="signed manifest of the last epoch")
    new.add_argument("--operator", metavar="PUB", help="the operator's public key, which PREVIOUS is checked with")
    new.add_argument("--operator-id", metavar="ID", help="name of the operator; for a first epoch")
    new.add_argument("--broker", metavar="[NAME=]PUB", help='public key of the broker (default name "broker")')
    new.add_argument("--profile", choices=PROFILES, help="cwt: HMAC-SHA256 (the default); trust: Ed25519 signatures")
    new.add_argument("--tick-ms", type=int, metavar="MS", help="T_tick in milliseconds (default 1000)")
    new.add_argument("--faults", type=int, metavar="F", help="vantages that may lie; less than half (default 0)")
    new.add_argument("--rate", type=int, metavar="N", help="times its natural rate a vantage may send (default 4)")
    new.add_argument("--embedding", metavar="MODEL", help="embedding model the AI vantages share (default none)")
    new.add_argument(
        "--witness", action="append", metavar="NOTE_KEY", help="may be repeated; replaces those of PREVIOUS"
    )
    new.add_argument("--quorum", type=int, metavar="Q", help="witnesses that must cosign (default 0)")
    new.add_argument("--begin", type=_time, metavar="TIME", help="RFC 3339 in UTC (default: now)")
    new.add_argument("--valid", type=_duration, default="90d", metavar="TIME", help="length (default %(default)s)")
    new.add_argument(
        "--overlap",
        type=_duration,
        default="10m",
        metavar="TIME",
        help="how long live snapshots of PREVIOUS are accepted beside it (default %(default)s)",
    )
    add_out(new)


def run(arguments: argparse.Namespace) -> int:
    """Do the action."""
    from mvps.trust.keys import KeySourceError
    from mvps.trust.manifest import ManifestError

    actions = {
        "new": _new,
        "sign": _sign,
        "show": _show,
        "verify": _verify,
        "revoke": _revoke,
    }
    try:
        return actions[arguments.action](arguments)
    except (KeySourceError, ManifestError) as error:
        raise exits.Failure(exits.USAGE, str(error)) from None


def read_draft(path: Path) -> Manifest:
    """The manifest in a draft file."""
    from mvps.trust.limits import MAX_MANIFEST_BYTES
    from mvps.trust.manifest import ManifestError, parse_manifest

    text = read_text(path, MAX_MANIFEST_BYTES)
    if "\n\n" in text:
        raise exits.Failure(exits.USAGE, f"{path} is signed already: begin the next epoch with mvps epoch new --from")
    try:
        return parse_manifest(text)
    except ManifestError as error:
        raise exits.Failure(exits.USAGE, f"{path}: {error}") from None


def _new(arguments: argparse.Namespace) -> int:
    from mvps.trust.keys import Kind, load_public
    from mvps.trust.manifest import Broker, Manifest, Profile, succeed
    from mvps.trust.note import NoteError, parse_note_key

    try:
        witnesses = arguments.witness and tuple(parse_note_key(text) for text in arguments.witness)
    except NoteError as error:
        raise exits.Failure(exits.USAGE, f"--witness: {error}") from None
    given: dict[str, Any] = {
        "profile": arguments.profile and Profile(arguments.profile),
        "tick_ms": arguments.tick_ms,
        "faults": arguments.faults,
        "rate_factor": arguments.rate,
        "embedding": arguments.embedding,
        "witnesses": witnesses,
        "quorum": arguments.quorum,
    }
    if arguments.broker:
        name, separator, source = arguments.broker.partition("=")
        # Base64 may end in "=", so a bare public key is told by its prefix.
        if not separator or arguments.broker.startswith("mvps-"):
            name, source = "", arguments.broker
        given["broker"] = (name, load_public(source, Kind.BROKER))
    given = {field: value for field, value in given.items() if value is not None}
    begin_s = int(time.time()) if arguments.begin is None else arguments.begin
    if arguments.previous is not None:
        if not arguments.operator or arguments.operator_id:
            raise exits.Failure(exits.USAGE, "--from needs --operator PUB, and takes the operator id from PREVIOUS")
        previous = _open(arguments.previous, load_public(arguments.operator, Kind.OPERATOR))
        draft = succeed(previous, begin_s, valid_s=arguments.valid, overlap_s=arguments.overlap)
        if "broker" in given:
            given["broker"] = Broker(given["broker"][0] or previous.broker.name, given["broker"][1])
        draft = replace(draft, **given)
    else:
        if not arguments.operator_id or not arguments.broker:
            raise exits.Failure(
                exits.USAGE,
                "a first epoch needs --operator-id and --broker; a later one --from PREVIOUS and --operator PUB",
            )
        given["broker"] = Broker(given["broker"][0] or "broker", given["broker"][1])
        draft = Manifest(
            operator=arguments.operator_id,
            epoch_id=1,
            previous=None,
            from_s=begin_s,
            until_s=begin_s + arguments.valid,
            retire_s=begin_s,
            **given,
        )
    give(draft.text.encode(), arguments.out)
    return exits.OK


def _sign(arguments: argparse.Namespace) -> int:
    from mvps.trust.keys import Kind, load_key
    from mvps.trust.manifest import check_successor, sign_manifest, utc

    draft = read_draft(arguments.draft)
    key = load_key(arguments.key, Kind.OPERATOR)
    previous = _open(arguments.previous, key.public) if arguments.previous else None
    if (previous is None) != (draft.previous is None):
        raise exits.Failure(
            exits.USAGE,
            f"epoch {draft.epoch_id} is a first epoch: leave --previous out"
            if draft.previous is None
            else f"give the manifest before epoch {draft.epoch_id} with --previous",
        )
    now_s = int(time.time())
    if arguments.now:
        draft = _begin(draft, now_s, previous)
    if draft.until_s <= now_s:
        raise exits.Failure(exits.USAGE, f"`until` of this draft is over, {utc(draft.until_s)}: sign with --now")
    if draft.from_s < draft.retire_s <= now_s:
        raise exits.Failure(
            exits.USAGE,
            f"`retire` of this draft is over, {utc(draft.retire_s)}: hosts would have no time to learn of the epoch. "
            "Sign with --now",
        )
    if previous is not None:
        check_successor(previous, draft)
    give(sign_manifest(draft, key), arguments.out)
    say(f"epoch {draft.epoch_id} of {draft.operator}, from {utc(draft.from_s)} until {utc(draft.until_s)}")
    for line in _changes(previous, draft):
        say(f"  {line}")
    return exits.OK


def _begin(draft: Manifest, now_s: int, previous: Manifest | None) -> Manifest:
    """The draft with its times moved so that it begins now."""
    moved = now_s - draft.from_s
    if previous is not None:
        moved = max(moved, previous.from_s + 1 - draft.from_s)
    from_s, retire_s = draft.from_s + moved, draft.retire_s + moved
    if previous is not None:
        retire_s = max(from_s, min(retire_s, previous.until_s))
    return replace(draft, from_s=from_s, until_s=draft.until_s + moved, retire_s=retire_s)


def _changes(previous: Manifest | None, draft: Manifest) -> list[str]:
    """Who is admitted, and what is different from the epoch before."""
    lines = [f"admits {len(draft.vantages)} vantages, f = {draft.faults}, profile {draft.profile}"]
    if previous is None:
        return lines
    before = {v.vantage_id: v.key for v in previous.vantages}
    after = {v.vantage_id: v.key for v in draft.vantages}
    news = {
        "new": [name for name in after if name not in before],
        "gone": [name for name in before if name not in after],
        "new key": [name for name in after if name in before and after[name] != before[name]],
        "quarantined": [name for name in draft.quarantined if name not in previous.quarantined],
        "released": [name for name in previous.quarantined if name in after and name not in draft.quarantined],
        "revoked": [f"{r.vantage_id} {r.key_id.hex()}" for r in draft.revoked if r not in previous.revoked],
    }
    return lines + [f"{what}: {', '.join(names)}" for what, names in news.items() if names]


def _show(arguments: argparse.Namespace) -> int:
    from mvps.trust.limits import MAX_MANIFEST_BYTES
    from mvps.trust.manifest import parse_manifest
    from mvps.trust.note import NoteError, parse_note

    data = read(arguments.file, MAX_MANIFEST_BYTES)
    try:
        signed_by = [signature.name for signature in (parse_note(data).signatures if b"\n\n" in data else ())]
        text = parse_note(data).text if signed_by else read_text(arguments.file, MAX_MANIFEST_BYTES)
    except NoteError as error:
        raise exits.Failure(exits.USAGE, f"{arguments.file}: {error}") from None
    manifest = parse_manifest(text)
    if arguments.json:
        print(json.dumps(_json(manifest) | {"signed_by": signed_by}, indent=2))
    else:
        print(_human(manifest))
        print(f"signed by {', '.join(signed_by)}; not checked here" if signed_by else "a draft, not signed")
    return exits.OK


def _verify(arguments: argparse.Namespace) -> int:
    from mvps.trust.keys import Kind, load_public
    from mvps.trust.limits import MAX_MANIFEST_BYTES
    from mvps.trust.manifest import ManifestError, check_chain, open_manifest

    operator = load_public(arguments.operator, Kind.OPERATOR)
    good: list[Manifest] = []
    rows: list[dict[str, object]] = []
    for path in arguments.files:
        data = read(path, MAX_MANIFEST_BYTES)
        try:
            manifest = open_manifest(data, operator)
        except ManifestError as error:
            rows.append({"file": str(path), "error": str(error)})
        else:
            good.append(manifest)
            rows.append({"file": str(path), "epoch": manifest.epoch_id, "digest": manifest.digest.hex(), "error": ""})
    remarks: list[str] = []
    broken = ""
    try:
        remarks = check_chain(good)
    except ManifestError as error:
        broken = str(error)
    remarks += _remarks_about_now(good)
    if arguments.json:
        print(json.dumps({"manifests": rows, "chain_error": broken, "remarks": remarks}, indent=2))
    else:
        for row in rows:
            word, what = ("bad ", row["error"]) if row["error"] else ("good", f"epoch {row['epoch']}")
            print(f"{word}  {row['file']}: {what}")
        for line in [f"bad   {broken}"] * bool(broken) + [f"note  {remark}" for remark in remarks]:
            print(line)
    return exits.FOUND if broken or any(row["error"] for row in rows) else exits.OK


def _remarks_about_now(manifests: list[Manifest]) -> list[str]:
    from mvps.trust.manifest import utc

    if not manifests:
        return []
    newest = max(manifests, key=lambda manifest: manifest.epoch_id)
    now_s = time.time()
    if now_s < newest.from_s:
        return [f"epoch {newest.epoch_id} begins {utc(newest.from_s)}"]
    if now_s >= newest.until_s:
        return [f"epoch {newest.epoch_id} ended {utc(newest.until_s)}: nothing is accepted until a new one is signed"]
    return [f"epoch {newest.epoch_id} is in force until {utc(newest.until_s)}"]


def _revoke(arguments: argparse.Namespace) -> int:
    from mvps.trust.manifest import revoke

    draft = read_draft(arguments.draft)
    changed = revoke(draft, arguments.vantage, arguments.key_id)
    rewrite(arguments.draft, changed.text.encode())
    new = [r.key_id.hex() for r in changed.revoked if r not in draft.revoked]
    print(f"{arguments.vantage}: key {', '.join(new) or 'already'} revoked; {len(changed.vantages)} vantages are left")
    say("next: mvps epoch sign, and the manifest to the broker; it counts from then on, in every epoch")
    return exits.OK


def _open(path: Path, operator: PublicKey) -> Manifest:
    from mvps.trust.limits import MAX_MANIFEST_BYTES
    from mvps.trust.manifest import ManifestError, open_manifest

    try:
        return open_manifest(read(path, MAX_MANIFEST_BYTES), operator)
    except ManifestError as error:
        raise exits.Failure(exits.USAGE, f"{path}: {error}") from None


def _json(manifest: Manifest) -> dict[str, object]:
    from mvps.trust.manifest import utc

    return {
        "operator": manifest.operator,
        "epoch": manifest.epoch_id,
        "digest": manifest.digest.hex(),
        "previous": manifest.previous and manifest.previous.hex(),
        "from": utc(manifest.from_s),
        "until": utc(manifest.until_s),
        "retire": utc(manifest.retire_s),
        "tick_ms": manifest.tick_ms,
        "profile": str(manifest.profile),
        "faults": manifest.faults,
        "rate_factor": manifest.rate_factor,
        "embedding": manifest.embedding,
        "broker": {"name": manifest.broker.name, "public": manifest.broker.key.text},
        "quorum": manifest.quorum,
        "witnesses": [key.text for key in manifest.witnesses],
        "vantages": [
            {
                "id": v.vantage_id,
                "cell": v.cell,
                "roles": list(v.roles),
                "prefixes": [str(prefix) for prefix in v.prefixes],
                "key_id": v.key.key_id.hex(),
                "public": v.key.text,
            }
            for v in manifest.vantages
        ],
        "quarantined": list(manifest.quarantined),
        "revoked": [{"vantage": r.vantage_id, "key_id": r.key_id.hex()} for r in manifest.revoked],
    }


def _human(manifest: Manifest) -> str:
    from mvps.trust.manifest import utc

    retires = f"earlier epochs leave the live lane {utc(manifest.retire_s)}" if manifest.previous else "the first epoch"
    lines = [
        f"epoch {manifest.epoch_id} of {manifest.operator}, profile {manifest.profile}, tick {manifest.tick_ms} ms",
        f"  from {utc(manifest.from_s)} until {utc(manifest.until_s)}; {retires}",
        f"  text SHA-256 {manifest.digest.hex()}",
        f"  broker {manifest.broker.name}: {manifest.broker.key.fingerprint}",
        f"  {len(manifest.witnesses)} witnesses, {manifest.quorum} must cosign",
        *(f"    {key.text}" for key in manifest.witnesses),
        f"  {len(manifest.vantages)} vantages, f = {manifest.faults}, rate {manifest.rate_factor} x, "
        f"embedding {manifest.embedding}",
    ]
    for v in manifest.vantages:
        where = f"cell {v.cell or '-'}  {','.join(v.roles) or '-'}  {','.join(map(str, v.prefixes)) or 'any address'}"
        lines.append(f"    {v.vantage_id}  {v.key.key_id.hex()}  {where}")
    lines += [f"    quarantined {name}" for name in manifest.quarantined]
    lines += [f"    revoked {r.vantage_id}  {r.key_id.hex()}" for r in manifest.revoked]
    return "\n".join(lines)


def _duration(text: str) -> int:
    found = re.fullmatch(r"([0-9]{1,6})([smhd])", text)
    if not found:
        raise argparse.ArgumentTypeError(f'"{text}" is no time; write 90d, 10m or 0s')
    return int(found[1]) * _UNITS[found[2]]


def _time(text: str) -> int:
    from mvps.trust.manifest import ManifestError, parse_utc

    try:
        return parse_utc(text)
    except ManifestError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _key_id(text: str) -> bytes:
    if not re.fullmatch(r"[0-9a-f]{16}", text):
        raise argparse.ArgumentTypeError(f'"{text}" is no key id; mvps epoch show prints them, 16 hex digits')
    return bytes.fromhex(text)

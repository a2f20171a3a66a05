# SPDX-License-Identifier: Apache-2.0
"""``mvps verify``: prove offline what a broker's evidence log holds, and that it only grew."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvps.cli import exits
from mvps.cli.witness import log_keys

if TYPE_CHECKING:
    from mvps.trust.audit import Audit, Found, Signed, Trusted
    from mvps.trust.manifest import Manifest
    from mvps.trust.note import Note, NoteKey

_SUFFIX = ".manifest"


def declare(_verb: str, parser: argparse.ArgumentParser) -> None:
    """Arguments of ``mvps verify``."""
    parser.add_argument(
        "log", nargs="*", metavar="LOG", type=Path, help="evidence folder, or the database it belongs to, or a copy"
    )
    parser.add_argument("--proof", metavar="FILE", type=Path, help="check an exported inclusion proof alone")
    parser.add_argument("--operator", metavar="KEY", help="the operator's public key, or a file that holds it")
    parser.add_argument(
        "--manifests",
        metavar="PATH",
        type=Path,
        action="append",
        default=[],
        help="a signed manifest, or a directory of *.manifest; may be given more than once",
    )
    parser.add_argument(
        "--log-key",
        metavar="KEY",
        action="append",
        default=[],
        help="key of the log, ORIGIN=PUBLICKEY or a vkey, instead of an operator's manifests",
    )
    parser.add_argument(
        "--witness", metavar="VKEY", action="append", default=[], help="a witness to trust besides the manifests'"
    )
    parser.add_argument(
        "--quorum", metavar="N", type=int, help="witnesses that must have cosigned; wins over manifests"
    )
    parser.add_argument(
        "--kept",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="a checkpoint kept earlier or somewhere else, which the log must contain",
    )
    parser.add_argument(
        "--keep", metavar="FILE", type=Path, help="write the newest cosigned checkpoint here if all holds, for --kept"
    )
    parser.add_argument(
        "--snapshot", metavar="VANTAGE/COUNTER", action="append", default=[], help="find it, and prove that it is in"
    )
    parser.add_argument("--export", metavar="DIR", type=Path, help="write the proofs of --snapshot here, one file each")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.epilog = (
        "examples:\n"
        "  mvps verify /var/lib/mvps-broker/broker.db --operator operator.pub --manifests /etc/mvps/manifests\n"
        "  mvps verify copy.evidence --operator operator.pub --manifests manifests --kept last-month.checkpoint\n"
        "  mvps verify copy.evidence --operator operator.pub --manifests manifests --snapshot host-a/7709 --export .\n"
        "  mvps verify --proof host-a-7709.tlog-proof --operator operator.pub --manifests manifests\n"
        "exit codes: 0 everything holds, 1 something does not (it is named), 2 the keys or files given are bad"
    )


def run(arguments: argparse.Namespace) -> int:
    """Audit, and say what was found."""
    from mvps.trust.keys import KeySourceError
    from mvps.trust.manifest import ManifestError
    from mvps.trust.note import NoteError

    if bool(arguments.log) == bool(arguments.proof):
        raise exits.Failure(exits.USAGE, "give one or more evidence folders, or --proof FILE")
    if len(arguments.log) != 1 and (arguments.keep or arguments.kept):
        raise exits.Failure(exits.USAGE, "--keep and --kept are about one log: give one evidence folder")
    try:
        trusted, remarks = _trusted(arguments)
    except (KeySourceError, NoteError, ManifestError) as error:
        raise exits.Failure(exits.USAGE, str(error)) from None
    if arguments.proof:
        return _check_proof(arguments, trusted)
    shown = [_audit_one(path, arguments, trusted, remarks) for path in arguments.log]
    if arguments.json:
        print(json.dumps(shown if len(shown) > 1 else shown[0], indent=2))
    else:
        print("\n".join(map(_text, shown)), end="")
    return exits.OK if all(one["holds"] for one in shown) else exits.FOUND


# ---- what is believed


def _trusted(arguments: argparse.Namespace) -> tuple[Trusted, list[str]]:
    from mvps.trust.audit import Trusted
    from mvps.trust.manifest import check_chain
    from mvps.trust.note import COSIGNATURE_V1, parse_note_key

    logs: list[NoteKey] = list(log_keys(arguments.log_key))
    witnesses = [parse_note_key(text) for text in arguments.witness]
    for key in witnesses:
        if key.algorithm != COSIGNATURE_V1:
            raise exits.Failure(exits.USAGE, f"--witness {key.name}: this is no key of a witness (algorithm 4)")
    if arguments.quorum is not None and arguments.quorum < 0:
        raise exits.Failure(exits.USAGE, "--quorum: not below 0")
    if bool(arguments.operator) != bool(arguments.manifests):
        raise exits.Failure(exits.USAGE, "--operator and --manifests belong together: the one vouches for the other")
    if not arguments.operator and not logs:
        raise exits.Failure(
            exits.USAGE, "nobody is trusted: give --operator KEY --manifests DIR, or --log-key ORIGIN=PUBLICKEY"
        )
    if arguments.operator and logs:
        raise exits.Failure(exits.USAGE, "--log-key would win over the operator's manifests: give one of them")
    manifests: dict[bytes, Manifest] = {}
    remarks: list[str] = []
    if arguments.operator:
        for manifest in _manifests(arguments.manifests, arguments.operator):
            manifests[manifest.digest] = manifest
        remarks = check_chain(manifests.values())
    return Trusted(manifests, logs, witnesses, arguments.quorum), remarks


def _manifests(paths: Iterable[Path], operator: str) -> list[Manifest]:
    from mvps.trust.keys import Kind, load_public
    from mvps.trust.limits import MAX_MANIFEST_BYTES
    from mvps.trust.manifest import ManifestError, open_manifest

    key = load_public(operator, Kind.OPERATOR)
    files = [f for path in paths for f in (sorted(path.glob(f"*{_SUFFIX}")) if path.is_dir() else [path])]
    if not files:
        raise exits.Failure(exits.USAGE, f"there is no *{_SUFFIX} in {', '.join(map(str, paths))}")
    found: list[Manifest] = []
    for file in files:
        try:
            found.append(open_manifest(_read(file, MAX_MANIFEST_BYTES), key))
        except ManifestError as error:
            raise ManifestError(f"{file}: {error}") from None
    return found


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise exits.Failure(exits.USAGE, f"cannot read {path}: {error.strerror}") from None
    if len(data) > limit:
        raise exits.Failure(exits.USAGE, f"{path} has more than {limit} bytes, too many for what it should be")
    return data


# ---- a log


def _audit_one(path: Path, arguments: argparse.Namespace, trusted: Trusted, remarks: list[str]) -> dict[str, Any]:
    from mvps.trust.audit import audit
    from mvps.trust.evidence_log import EvidenceError, LogFiles

    folder = path if path.is_dir() else path.with_name(path.name + ".evidence")
    wanted = [_snapshot(text) for text in arguments.snapshot]
    try:
        files = LogFiles(folder)
        result = audit(files, trusted, kept=map(_note, arguments.kept), snapshots=wanted)
    except EvidenceError as error:
        raise exits.Failure(exits.USAGE, str(error)) from None
    snapshots = _prove_all(files, wanted, arguments.export, trusted, result)
    if arguments.keep is not None and result.holds and result.newest_cosigned:
        _write(arguments.keep, result.newest_cosigned.note.render())
    return {
        "log": str(folder),
        "holds": result.holds,
        "origin": result.newest.checkpoint.origin if result.newest else None,
        "size": result.size,
        "root": result.newest.checkpoint.root.hex() if result.newest else None,
        "cosigned_size": result.cosigned_size,
        "cosigned_by": dict(result.newest_cosigned.cosigned) if result.newest_cosigned else {},
        "first_leaf": result.first,
        "leaves": result.leaves,
        "checkpoints": result.checkpoints,
        "distances": _distances(result.newest),
        "findings": [finding._asdict() for finding in result.findings],
        "remarks": [*remarks, *result.remarks],
        "snapshots": snapshots,
    }


def _distances(newest: Signed | None) -> dict[str, Any] | None:
    """The pair that the newest checkpoint binds, and whose it is; None where there is none."""
    from mvps.trust.checkpoint import CheckpointError

    try:
        d2 = newest.checkpoint.binding.d2 if newest is not None else None
    except CheckpointError:  # of another log than a broker's
        d2 = None
    if d2 is None:
        return None
    return {"of": "fleet" if d2.of_fleet else "vantages", "minimax": d2.minimax, "max": d2.largest}


def _snapshot(text: str) -> tuple[str, int]:
    vantage, _, counter = text.rpartition("/")
    if not vantage or not counter.isdecimal():
        raise exits.Failure(exits.USAGE, f'--snapshot "{text}": write VANTAGE/COUNTER')
    return vantage, int(counter)


def _note(path: Path) -> Note:
    from mvps.trust.note import NoteError, parse_note

    try:
        return parse_note(_read(path, 1 << 20))
    except NoteError as error:
        raise exits.Failure(exits.USAGE, f"{path}: {error}") from None


def _prove_all(
    files: Any, wanted: list[tuple[str, int]], export: Path | None, trusted: Trusted, result: Audit
) -> list[dict[str, Any]]:
    from mvps.trust.audit import prove
    from mvps.trust.checkpoint import CheckpointError
    from mvps.trust.evidence_log import EvidenceError

    shown: list[dict[str, Any]] = []
    for vantage, counter in wanted:
        if not any((f.header.vantage_id, f.header.counter) == (vantage, counter) for f in result.wanted):
            result.find("snapshot", f"{vantage}/{counter}", "is not among the leaves: never accepted, or pruned")
    for found in result.wanted:
        name = f"{found.header.vantage_id}/{found.header.counter}"
        signed = result.newest_cosigned or result.newest
        if signed and found.leaf >= signed.checkpoint.size:
            signed = result.newest
        if signed is None:
            continue
        try:
            proof = prove(files, found, signed)
        except (CheckpointError, EvidenceError) as error:
            result.find("snapshot", name, error)
            continue
        one = _facts(found, signed, trusted) | {"proof": proof.render().decode()}
        if export is not None:
            target = export / f"{found.header.vantage_id}-{found.header.counter}.tlog-proof"
            _write(target, proof.render())
            one["file"] = str(target)
        shown.append(one)
    return shown


def _write(path: Path, data: bytes) -> None:
    """Write a new file; an existing one is kept."""
    try:
        with path.open("xb") as file:
            file.write(data)
    except OSError as error:
        raise exits.Failure(exits.NOT_PERMITTED, f"cannot write {path}: {error.strerror}") from None


def _facts(found: Found, signed: Signed, trusted: Trusted) -> dict[str, Any]:
    header = found.header
    return {
        "vantage": header.vantage_id,
        "counter": header.counter,
        "epoch": header.epoch_id,
        "lane": header.lane,
        "tick": header.tick,
        "time_ns": header.time_ns,
        "leaf": found.leaf,
        "checkpoint_size": signed.checkpoint.size,
        "cosigned_by": dict(signed.cosigned),
        "seal": _seal(found, trusted),
    }


def _seal(found: Found, trusted: Trusted) -> str:
    """What the seal itself shows to somebody without secrets: with Ed25519, whose snapshot it is."""
    from mvps.trust.seal import Ed25519Verifier, Scheme

    header, sealed = found.header, found.sealed
    if header.scheme != Scheme.ED25519:
        return "not checked: only the vantage and the broker can check this scheme"
    for manifest in trusted.manifests.values():
        vantage = manifest.vantage(header.vantage_id)
        if manifest.epoch_id == header.epoch_id and vantage is not None:
            holds = Ed25519Verifier(vantage.key).holds(sealed.header, sealed.body, sealed.tag)
            return "holds: the vantage's key signed it" if holds else "does not hold"
    return "not checked: no manifest of its epoch is given"


def _text(shown: dict[str, Any]) -> str:
    lines = [f"log        {shown['log']}"]
    if shown["origin"] is not None:
        lines += [
            f"origin     {shown['origin']}",
            f"signed     {shown['size']} leaves, root {shown['root']}",
            f"cosigned   {shown['cosigned_size']} leaves" + _by(shown["cosigned_by"]),
        ]
    if (d2 := shown["distances"]) is not None:
        lines.append(f"distances  D^2_minimax {d2['minimax']:.2f}, D^2_max {d2['max']:.2f}, of the {d2['of']}")
    lines.append(f"on disk    {shown['leaves']} leaves from {shown['first_leaf']}, {shown['checkpoints']} checkpoints")
    lines += [f"remark     {remark}" for remark in shown["remarks"]]
    for one in shown["snapshots"]:
        lines.append(_snapshot_line(one))
        lines += [f"written    {one['file']}"] if "file" in one else ["", one["proof"]]
    lines += [f"WRONG      {f['kind']}: {f['where']}: {f['text']}" for f in shown["findings"]]
    lines.append("everything holds" if shown["holds"] else f"{len(shown['findings'])} findings")
    return "\n".join(lines) + "\n"


def _snapshot_line(one: dict[str, Any]) -> str:
    return (
        f"snapshot   {one['vantage']}/{one['counter']} (epoch {one['epoch']}, lane {one['lane']}, tick {one['tick']}) "
        f"is leaf {one['leaf']} of {one['checkpoint_size']}; its seal: {one['seal']}"
    )


def _by(cosigned: dict[str, int]) -> str:
    return f", by {', '.join(sorted(cosigned))}" if cosigned else ""


# ---- a proof alone


def _check_proof(arguments: argparse.Namespace, trusted: Trusted) -> int:
    from mvps.trust.audit import Found
    from mvps.trust.checkpoint import CheckpointError, parse_proof
    from mvps.trust.evidence_log import MAX_LEAF, EvidenceError, sealed_of
    from mvps.trust.seal import parse_header

    data = _read(arguments.proof, 2 * MAX_LEAF)
    shown: dict[str, Any] = {"proof": str(arguments.proof), "holds": False}
    try:
        proof = parse_proof(data)
        proof.verified_head()
        signed = trusted.judge(proof.checkpoint)
        if not signed.enough:
            raise CheckpointError(
                f"its checkpoint is cosigned by {len(signed.cosigned)} of the trusted witnesses, and {signed.quorum} "
                "are needed"
            )
        sealed = sealed_of(proof.leaf)
        found = Found(proof.leaf_index, parse_header(sealed.header), sealed)
        shown |= {"holds": True, "origin": signed.checkpoint.origin} | _facts(found, signed, trusted)
        if shown["seal"] == "does not hold":
            raise CheckpointError("it is in the log, and the seal of its vantage does not hold")
    except (CheckpointError, EvidenceError) as error:
        shown |= {"holds": False, "error": str(error)}
    if arguments.json:
        print(json.dumps(shown, indent=2))
    elif shown["holds"]:
        print(f"{_snapshot_line(shown)}\norigin     {shown['origin']}{_by(shown['cosigned_by'])}\neverything holds")
    else:
        print(f"WRONG      proof: {arguments.proof}: {shown['error']}")
    return exits.OK if shown["holds"] else exits.FOUND

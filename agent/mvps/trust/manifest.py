# SPDX-License-Identifier: Apache-2.0
"""Operator epoch manifests: who is admitted, under which scheme and from when, as the operator signed it.

A manifest is a signed note (:mod:`mvps.trust.note`) whose signature name is the operator id and whose text has these
lines, in this order, and nothing else (all ours; the sources name the manifest and not its fields)::

    mvps-epoch-manifest-v1
    operator acme
    epoch 7                                  larger than every earlier one
    previous <SHA-256 of epoch 6's text>     or: none
    from 2026-11-21T13:00:00Z                sealing under this epoch begins; UTC, whole seconds
    until 2027-02-19T13:00:00Z               and ends, at the latest
    retire 2026-11-21T13:10:00Z              from then on no live snapshot may be sealed under an earlier epoch
    tick 1000ms                              T_tick
    profile cwt                              cwt: HMAC-SHA256; trust: Ed25519. Nothing else decides the scheme
    faults 1                                 f; 2 f < number of vantages that are not quarantined
    rate 4                                   a vantage may send this many times its natural rate (T-VDOS-1)
    embedding none                           model that AI vantages share (hypothesis H-A4)
    broker site-1 mvps-public-v1:broker:...
    quorum 1                                 witnesses that must cosign a checkpoint
    witness witness.example+1a2b3c4d+...     any number, sorted
    vantage host-a cell=r1 roles=host prefixes=10.0.0.5/32 key=mvps-public-v1:host:...      "-" for none; sorted
    quarantined host-b                       admitted and logged, and no part of the fleet's decision; sorted
    revoked host-z 0123456789abcdef          key id that is refused in every epoch; sorted, never taken back

There is exactly one text for one content: what does not render to itself is refused. ``retire`` speaks about the live
lane only; backfill is judged by the epoch's own validity (:mod:`mvps.trust.epochs`).
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from functools import cached_property
from itertools import pairwise
from typing import Final, NamedTuple, NoReturn, TypeAlias

from mvps.trust.keys import KeySourceError, Kind, PublicKey, SecretKey, may_vouch, parse_public
from mvps.trust.limits import (
    MAX_MANIFEST_BYTES,
    MAX_PREFIXES,
    MAX_REVOKED,
    MAX_ROLES,
    MAX_VANTAGES,
    MAX_WITNESSES,
)
from mvps.trust.note import (
    COSIGNATURE_V1,
    ED25519,
    Note,
    NoteError,
    NoteKey,
    parse_note,
    parse_note_key,
    sign_note,
    verified,
)
from mvps.trust.seal import Scheme, check_vantage_id

FIRST_LINE: Final = "mvps-epoch-manifest-v1"
VALID_S: Final = 90 * 86400  # of a new epoch
OVERLAP_S: Final = 600  # of a new epoch with the one before it
_NS: Final = 10**9
_LAST_S: Final = (1 << 63) // _NS  # 2262: times stay below 2^63 ns
_MAX_EPOCH: Final = (1 << 63) - 1
_NONE: Final = "-"
_OPERATOR: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,63}")
_EMBEDDING: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}")
_CELL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ROLE: Final = re.compile(r"[a-z][a-z0-9-]{0,31}")
_NUMBER: Final = re.compile(r"[0-9]{1,19}")
_HEX_32: Final = re.compile(r"[0-9a-f]{64}")
_VANTAGE: Final = re.compile(r"(\S+) cell=(\S+) roles=(\S+) prefixes=(\S+) key=(\S+)")
_REVOKED: Final = re.compile(r"(\S+) ([0-9a-f]{16})")
_HEAD: Final = (
    "operator", "epoch", "previous", "from", "until", "retire", "tick", "profile", "faults", "rate", "embedding",
    "broker", "quorum",
)  # fmt: skip

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


class ManifestError(Exception):
    """A manifest does not count. The message says why and what to do."""


class Profile(StrEnum):
    """How snapshots and answers are sealed in an epoch."""

    CWT = "cwt"
    TRUST = "trust"

    @property
    def scheme(self) -> Scheme:
        """The scheme of every seal in such an epoch."""
        return Scheme.HMAC_SHA256 if self is Profile.CWT else Scheme.ED25519


class Broker(NamedTuple):
    """The broker of an epoch."""

    name: str
    key: PublicKey


class Vantage(NamedTuple):
    """An admitted vantage. ``cell`` may be empty; no prefixes means any source address."""

    vantage_id: str
    key: PublicKey
    cell: str = ""
    roles: tuple[str, ...] = ()
    prefixes: tuple[Network, ...] = ()


class Revoked(NamedTuple):
    """A key that counts in no epoch any more, and whose it was."""

    vantage_id: str
    key_id: bytes


@dataclass(frozen=True)
class Manifest:
    """The content of a manifest. One that exists is well-formed; :meth:`check` says whether it may be in force.

    Times are POSIX seconds. Order and repetition in the collections do not matter.
    """

    operator: str
    epoch_id: int
    previous: bytes | None
    from_s: int
    until_s: int
    retire_s: int
    broker: Broker
    tick_ms: int = 1000
    profile: Profile = Profile.CWT
    faults: int = 0
    rate_factor: int = 4
    embedding: str = "none"
    quorum: int = 0
    witnesses: tuple[NoteKey, ...] = ()
    vantages: tuple[Vantage, ...] = ()
    quarantined: tuple[str, ...] = ()
    revoked: tuple[Revoked, ...] = ()

    def __post_init__(self) -> None:
        _sort(self)
        _check_head(self)
        _check_members(self)

    @cached_property
    def text(self) -> str:
        """The text that is signed."""
        return "".join(f"{line}\n" for line in _lines(self))

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the text: what the next manifest and the checkpoints name."""
        return hashlib.sha256(self.text.encode()).digest()

    @property
    def scheme(self) -> Scheme:
        """The only scheme of seals in this epoch."""
        return self.profile.scheme

    @property
    def from_ns(self) -> int:
        """Beginning, in ns since the Unix epoch."""
        return self.from_s * _NS

    @property
    def until_ns(self) -> int:
        """End, in ns since the Unix epoch."""
        return self.until_s * _NS

    @property
    def retire_ns(self) -> int:
        """When earlier epochs leave the live lane, in ns since the Unix epoch."""
        return self.retire_s * _NS

    def vantage(self, vantage_id: str) -> Vantage | None:
        """The admitted vantage of that id."""
        return self._by_id.get(vantage_id)

    def check(self) -> None:
        """ManifestError unless this may be in force: f and the quorum fit those who are admitted."""
        counted = len(self.vantages) - len(self.quarantined)
        if 2 * self.faults >= counted:
            aside = f" that are not in quarantine ({len(self.quarantined)} are)" if self.quarantined else ""
            _fail(
                f"epoch {self.epoch_id} admits {counted} vantages{aside} and claims that f = {self.faults} of them may "
                f"lie: f must be less than half. Admit {2 * self.faults + 1} or more, or lower `faults`"
            )
        if self.quorum > len(self.witnesses):
            _fail(
                f"epoch {self.epoch_id} asks for {self.quorum} cosignatures and names {len(self.witnesses)} "
                "witnesses: add witnesses, or lower `quorum`"
            )

    @property
    def fleet(self) -> tuple[Vantage, ...]:
        """The admitted vantages that take part in the fleet's decision."""
        aside = set(self.quarantined)
        return tuple(vantage for vantage in self.vantages if vantage.vantage_id not in aside)

    @cached_property
    def _by_id(self) -> dict[str, Vantage]:
        return {vantage.vantage_id: vantage for vantage in self.vantages}


# ---- reading and writing


def sign_manifest(manifest: Manifest, operator: SecretKey) -> bytes:
    """The signed note. ManifestError if the manifest may not be in force."""
    if operator.kind is not Kind.OPERATOR:
        _fail(f"a manifest is signed with an operator key, and this is a {operator.kind} key")
    manifest.check()
    signature = sign_note(manifest.text, manifest.operator, operator.sign, operator.public.ed25519)
    signed = Note(manifest.text, (signature,)).render()
    if len(signed) > MAX_MANIFEST_BYTES:
        _fail(f"a manifest of {len(signed)} bytes, at most {MAX_MANIFEST_BYTES} allowed: name fewer source prefixes")
    return signed


def open_manifest(data: bytes, operator: PublicKey) -> Manifest:
    """The manifest in a signed note that ``operator`` signed. ManifestError for everything else.

    Nothing but the note's signature lines is read before the signature holds.
    """
    if operator.kind is not Kind.OPERATOR:
        _fail(f"manifests are signed with an operator key; configured is a {operator.kind} key")
    if len(data) > MAX_MANIFEST_BYTES:
        _fail(f"a manifest of {len(data)} bytes, at most {MAX_MANIFEST_BYTES} allowed")
    try:
        note = parse_note(data)
        keys = [NoteKey(name, ED25519, operator.ed25519) for name in dict.fromkeys(s.name for s in note.signatures)]
        named = [(s.name, s.key_id) for s in note.signatures]
        keys = [key for key in keys if (key.name, key.key_id) in named]
        # One key signs under one name; each further one would cost a verification.
        if len(keys) != 1 or not verified(note, keys):
            _fail(f"this manifest is not signed by the configured operator ({operator.fingerprint}): get the right one")
    except NoteError as error:
        _fail(f"this is no manifest that counts: {error}")
    manifest = parse_manifest(note.text)
    if manifest.operator != keys[0].name:
        _fail(f"a manifest of operator {manifest.operator} is signed in the name of {keys[0].name}")
    manifest.check()
    return manifest


def parse_manifest(text: str) -> Manifest:
    """Read the text of a manifest or draft, which nothing vouches for. ManifestError names the line."""
    if len(text) > MAX_MANIFEST_BYTES:
        _fail(f"a manifest of {len(text)} characters, at most {MAX_MANIFEST_BYTES} allowed")
    lines = text.removesuffix("\n").split("\n")
    if lines[0] != FIRST_LINE:
        _fail(f"line 1: this is no manifest; it begins with {FIRST_LINE}")
    head: dict[str, str] = {}
    for number, name in enumerate(_HEAD, start=2):
        line = lines[number - 1] if number <= len(lines) else ""
        found, _, head[name] = line.partition(" ")
        if found != name:
            _fail(f"line {number}: {line[:60]!r} stands where `{name}` is needed")
    witnesses: list[NoteKey] = []
    vantages: list[Vantage] = []
    quarantined: list[str] = []
    revoked: list[Revoked] = []
    for number, line in enumerate(lines[len(_HEAD) + 1 :], start=len(_HEAD) + 2):
        name, _, rest = line.partition(" ")
        try:
            if name == "vantage":
                vantages.append(_vantage(rest))
            elif name == "quarantined":
                quarantined.append(rest)
            elif name == "revoked":
                revoked.append(_revoked(rest))
            elif name == "witness":
                witnesses.append(parse_note_key(rest))
            else:
                _fail(f"{line[:60]!r} is no line of a manifest")
        except (ManifestError, NoteError, KeySourceError, ValueError) as error:
            _fail(f"line {number}: {error}")
        if len(vantages) > MAX_VANTAGES or len(revoked) > MAX_REVOKED or len(witnesses) > MAX_WITNESSES:
            _fail(
                f"line {number}: more than {MAX_VANTAGES} vantages, {MAX_REVOKED} revoked or {MAX_WITNESSES} witnesses"
            )
    manifest = _manifest(head, tuple(witnesses), tuple(vantages), tuple(quarantined), tuple(revoked))
    if manifest.text != text:
        _fail(_difference(text, manifest.text))
    return manifest


def utc(seconds: int) -> str:
    """A time as manifests write it, RFC 3339."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_utc(text: str) -> int:
    """POSIX seconds of a time that :func:`utc` wrote; ManifestError for any other form."""
    try:
        seconds = int(datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp())
    except ValueError:
        _fail(f"{text[:40]!r} is no time: write {utc(0)}, in UTC and whole seconds")
    return seconds


def parse_network(text: str) -> Network:
    """A source prefix; ManifestError if bits beyond its length are set."""
    try:
        if "%" in text:
            raise ValueError(f"{text[:60]!r} has a zone, which means nothing on another host")
        return ipaddress.ip_network(text)
    except ValueError as error:
        _fail(f"{error}: write the prefix of the addresses the vantage sends from, e.g. 10.0.0.5/32")


def check_vantage(vantage: Vantage) -> None:
    """ManifestError unless a vantage can stand in a manifest."""
    _check_id(vantage.vantage_id)
    if vantage.key.kind is not Kind.HOST:
        _fail(f"vantage {vantage.vantage_id} has a {vantage.key.kind} key, and needs a host key")
    if vantage.cell and not _CELL.fullmatch(vantage.cell):
        _fail(f"cell {vantage.cell!r} must be 1 to 64 letters, digits or . _ -")
    if len(vantage.roles) > MAX_ROLES or len(vantage.prefixes) > MAX_PREFIXES:
        _fail(f"vantage {vantage.vantage_id} has more than {MAX_ROLES} roles or {MAX_PREFIXES} prefixes")
    for role in vantage.roles:
        if not _ROLE.fullmatch(role):
            _fail(f"role {role!r} must be 1 to 32 lower-case letters, digits or -, and begin with a letter")


# ---- from one epoch to the next


def succeed(previous: Manifest, from_s: int, *, valid_s: int = VALID_S, overlap_s: int = OVERLAP_S) -> Manifest:
    """A draft of the epoch after ``previous``, with the same members.

    It begins at ``from_s``, or one second after ``previous`` began if that is later. The overlap ends with
    ``previous``; there is none if ``previous`` is over.
    """
    from_s = max(from_s, previous.from_s + 1)
    return replace(
        previous,
        epoch_id=previous.epoch_id + 1,
        previous=previous.digest,
        from_s=from_s,
        until_s=from_s + valid_s,
        retire_s=max(from_s, min(from_s + overlap_s, previous.until_s)),
    )


def admit(manifest: Manifest, vantage: Vantage) -> Manifest:
    """``manifest`` with ``vantage``, in place of an earlier one of the same id."""
    others = tuple(v for v in manifest.vantages if v.vantage_id != vantage.vantage_id)
    return replace(manifest, vantages=(*others, vantage))


def revoke(manifest: Manifest, vantage_id: str, key_id: bytes | None = None) -> Manifest:
    """``manifest`` with a key revoked.

    key_id: None drops the vantage and revokes the key it has; otherwise that key is revoked, and the vantage is
    dropped only if it is the one it has.
    """
    vantage = manifest.vantage(vantage_id)
    if key_id is None:
        if vantage is None:
            _fail(f"vantage {vantage_id} is not in epoch {manifest.epoch_id}: name the key with --key-id as well")
        key_id = vantage.key.key_id
    others = tuple(v for v in manifest.vantages if v.vantage_id != vantage_id or v.key.key_id != key_id)
    left = {v.vantage_id for v in others}
    return replace(
        manifest,
        vantages=others,
        quarantined=tuple(name for name in manifest.quarantined if name in left),
        revoked=(*manifest.revoked, Revoked(vantage_id, key_id)),
    )


def quarantine(manifest: Manifest, vantage_id: str) -> Manifest:
    """``manifest`` with a vantage set aside. Whether f still fits those who are left is checked when it is signed."""
    if manifest.vantage(vantage_id) is None:
        _fail(f"vantage {vantage_id} is not in epoch {manifest.epoch_id}: mvps epoch show lists who is")
    return replace(manifest, quarantined=(*manifest.quarantined, vantage_id))


def release(manifest: Manifest, vantage_id: str) -> Manifest:
    """``manifest`` with a vantage taken back from quarantine."""
    if vantage_id not in manifest.quarantined:
        _fail(f"vantage {vantage_id} is not in quarantine in epoch {manifest.epoch_id}")
    return replace(manifest, quarantined=tuple(name for name in manifest.quarantined if name != vantage_id))


def check_successor(earlier: Manifest, later: Manifest) -> None:
    """ManifestError unless ``later`` may follow ``earlier``. Epochs between the two may be unknown."""
    pair = f"epoch {later.epoch_id} does not follow epoch {earlier.epoch_id}"
    if later.operator != earlier.operator:
        _fail(f"{pair}: its operator is {later.operator}, not {earlier.operator}")
    if later.epoch_id <= earlier.epoch_id:
        _fail(f"{pair}: epoch ids must rise; write it with mvps epoch new --from")
    adjacent = later.epoch_id == earlier.epoch_id + 1
    if later.previous is None or (adjacent and later.previous != earlier.digest):
        _fail(f"{pair}: it names another manifest as its previous one. Write it with mvps epoch new --from")
    if later.from_s <= earlier.from_s:
        _fail(f"{pair}: it begins {utc(later.from_s)}, and the earlier one {utc(earlier.from_s)}")
    # An epoch that lapsed before its successor began has nothing left to overlap with.
    if adjacent and later.retire_s > max(later.from_s, earlier.until_s):
        _fail(
            f"{pair}: `retire` is {utc(later.retire_s)}, and the earlier one ends {utc(earlier.until_s)}. "
            "Let `retire` be no later than that end or, after a gap, equal to `from`"
        )
    lost = set(earlier.revoked) - set(later.revoked)
    if lost:
        first = min(lost)
        _fail(
            f"{pair}: it takes {len(lost)} revocations back, the first of {first.vantage_id} "
            f"{first.key_id.hex()}. A revoked key stays revoked; give the host a new one"
        )


def check_chain(manifests: Iterable[Manifest]) -> list[str]:
    """Check that verified manifests follow one another, and return what an auditor should know about.

    Raises ManifestError at the first that does not. The remarks name missing epochs and times without one.
    """
    chain = sorted(manifests, key=lambda manifest: manifest.epoch_id)
    remarks: list[str] = []
    for earlier, later in pairwise(chain):
        if earlier.epoch_id == later.epoch_id:
            if earlier.digest == later.digest:
                continue
            _fail(f"there are two different manifests of epoch {later.epoch_id}: the operator signed both")
        check_successor(earlier, later)
        if later.epoch_id > earlier.epoch_id + 1:
            remarks.append(f"between epochs {earlier.epoch_id} and {later.epoch_id} manifests are missing")
        elif later.from_s > earlier.until_s:
            remarks.append(
                f"no epoch from {utc(earlier.until_s)} to {utc(later.from_s)}: nothing sealed then is accepted"
            )
    return remarks


# ---- helpers


def _fail(message: str) -> NoReturn:
    raise ManifestError(message)


def _sort(manifest: Manifest) -> None:
    """One order for one content."""
    vantages = sorted(map(_sorted_vantage, manifest.vantages), key=lambda vantage: vantage.vantage_id)
    object.__setattr__(manifest, "vantages", tuple(vantages))
    object.__setattr__(manifest, "witnesses", tuple(sorted(set(manifest.witnesses), key=lambda key: key.text)))
    object.__setattr__(manifest, "quarantined", tuple(sorted(set(manifest.quarantined))))
    object.__setattr__(manifest, "revoked", tuple(sorted(set(manifest.revoked))))


def _sorted_vantage(vantage: Vantage) -> Vantage:
    prefixes = vantage.prefixes
    if len(prefixes) > 1:
        prefixes = tuple(sorted(set(prefixes), key=_network_order))
    return vantage._replace(roles=tuple(sorted(set(vantage.roles))), prefixes=prefixes)


def _network_order(network: Network) -> tuple[int, int, int]:
    return network.version, int(network.network_address), network.prefixlen


def _check_head(manifest: Manifest) -> None:
    if not _OPERATOR.fullmatch(manifest.operator):
        _fail(f"operator id {manifest.operator!r} must be 1 to 64 letters, digits or . _ : / @ -")
    if not _EMBEDDING.fullmatch(manifest.embedding):
        _fail(f"embedding model {manifest.embedding!r} must be a name without spaces, or none")
    for name, value, low, high in (
        ("epoch", manifest.epoch_id, 1, _MAX_EPOCH),
        ("tick", manifest.tick_ms, 50, 60_000),
        ("faults", manifest.faults, 0, MAX_VANTAGES),
        ("rate", manifest.rate_factor, 1, 1000),
        ("quorum", manifest.quorum, 0, MAX_WITNESSES),
    ):
        if not low <= value <= high:
            _fail(f"`{name}` is {value}, and must be from {low} to {high}")
    if manifest.previous is not None and len(manifest.previous) != 32:
        _fail(f"`previous` has {len(manifest.previous)} bytes, and a SHA-256 has 32")
    if not 0 <= manifest.from_s < manifest.until_s <= _LAST_S:
        _fail(f"`from` must be before `until`, and both from {utc(0)} to {utc(_LAST_S)}")
    if not manifest.from_s <= manifest.retire_s <= manifest.until_s:
        _fail("`retire` must not be before `from` nor after `until`")
    if manifest.previous is None and manifest.retire_s != manifest.from_s:
        _fail("`retire` must equal `from` in a first epoch: there is none before it")


def _check_members(manifest: Manifest) -> None:
    _check_id(manifest.broker.name)
    if manifest.broker.key.kind is not Kind.BROKER:
        _fail(f"broker {manifest.broker.name} has a {manifest.broker.key.kind} key: give the public part of its own")
    if len(manifest.vantages) > MAX_VANTAGES or len(manifest.revoked) > MAX_REVOKED:
        _fail(f"more than {MAX_VANTAGES} vantages or {MAX_REVOKED} revoked keys")
    if len(manifest.witnesses) > MAX_WITNESSES:
        _fail(f"more than {MAX_WITNESSES} witnesses")
    for key in manifest.witnesses:
        if key.algorithm != COSIGNATURE_V1:
            _fail(f"the key of witness {key.name} has algorithm {key.algorithm}: give its cosignature key, 4")
        if not may_vouch(key.public):
            _fail(f"the key of witness {key.name} is no key that anybody can hold: ask its owner for another")
    if len({key.name for key in manifest.witnesses}) < len(manifest.witnesses):
        _fail("two witnesses have the same name: each one counts towards the quorum once")
    revoked = {gone.key_id for gone in manifest.revoked}
    if manifest.broker.key.key_id in revoked:
        _fail(f"the key of broker {manifest.broker.name} is revoked: give it a new one")
    points = {manifest.broker.key.x25519: manifest.broker.name, manifest.broker.key.ed25519: manifest.broker.name}
    last = ""
    for vantage in manifest.vantages:
        check_vantage(vantage)
        if vantage.vantage_id == last:
            _fail(f"vantage {last} is there twice")
        last = vantage.vantage_id
        for point in (vantage.key.x25519, vantage.key.ed25519):
            # Two names for one key would count twice in f < |ADM|/2.
            if points.setdefault(point, last) != last:
                _fail(f"vantage {last} has the key of {points[point]}: every vantage needs its own")
        if vantage.key.key_id in revoked:
            _fail(f"the key of vantage {last} is revoked: rotate it and enrol the new one")
    strangers = set(manifest.quarantined).difference(vantage.vantage_id for vantage in manifest.vantages)
    if strangers:
        _fail(f"quarantined vantage {min(strangers)[:60]!r} is not admitted")
    for gone in manifest.revoked:
        _check_id(gone.vantage_id)
        if len(gone.key_id) != 8:
            _fail(f"revoked key of {gone.vantage_id}: a key id has 8 bytes, not {len(gone.key_id)}")


def _check_id(vantage_id: str) -> None:
    try:
        check_vantage_id(vantage_id)
    except ValueError as error:
        _fail(str(error))


def _lines(manifest: Manifest) -> list[str]:
    return [
        FIRST_LINE,
        f"operator {manifest.operator}",
        f"epoch {manifest.epoch_id}",
        f"previous {'none' if manifest.previous is None else manifest.previous.hex()}",
        f"from {utc(manifest.from_s)}",
        f"until {utc(manifest.until_s)}",
        f"retire {utc(manifest.retire_s)}",
        f"tick {manifest.tick_ms}ms",
        f"profile {manifest.profile}",
        f"faults {manifest.faults}",
        f"rate {manifest.rate_factor}",
        f"embedding {manifest.embedding}",
        f"broker {manifest.broker.name} {manifest.broker.key.text}",
        f"quorum {manifest.quorum}",
        *(f"witness {key.text}" for key in manifest.witnesses),
        *(
            f"vantage {v.vantage_id} cell={v.cell or _NONE} roles={_joined(v.roles)} "
            f"prefixes={_joined(v.prefixes)} key={v.key.text}"
            for v in manifest.vantages
        ),
        *(f"quarantined {vantage_id}" for vantage_id in manifest.quarantined),
        *(f"revoked {gone.vantage_id} {gone.key_id.hex()}" for gone in manifest.revoked),
    ]


def _joined(items: Sequence[object]) -> str:
    return ",".join(map(str, items)) or _NONE


def _split(text: str, limit: int) -> list[str]:
    if text == _NONE:
        return []
    items = text.split(",", limit)
    if len(items) > limit:
        _fail(f"more than {limit} entries in {text[:60]!r}")
    return items


def _vantage(rest: str) -> Vantage:
    match = _VANTAGE.fullmatch(rest)
    if match is None:
        _fail("a vantage has the form: vantage ID cell=C roles=R,R prefixes=P,P key=PUBLIC, with - for none")
    vantage_id, cell, roles, prefixes, key = match.groups()
    return Vantage(
        vantage_id,
        parse_public(key, Kind.HOST),
        "" if cell == _NONE else cell,
        tuple(_split(roles, MAX_ROLES)),
        tuple(parse_network(prefix) for prefix in _split(prefixes, MAX_PREFIXES)),
    )


def _revoked(rest: str) -> Revoked:
    match = _REVOKED.fullmatch(rest)
    if match is None:
        _fail("a revoked key has the form: revoked ID and 16 hex digits")
    return Revoked(match[1], bytes.fromhex(match[2]))


def _number(name: str, text: str) -> int:
    if not _NUMBER.fullmatch(text):
        _fail(f"`{name}` is {text[:40]!r}, and must be a whole number")
    return int(text)


def _manifest(
    head: dict[str, str],
    witnesses: tuple[NoteKey, ...],
    vantages: tuple[Vantage, ...],
    quarantined: tuple[str, ...],
    revoked: tuple[Revoked, ...],
) -> Manifest:
    previous = head["previous"]
    if previous != "none" and not _HEX_32.fullmatch(previous):
        _fail("`previous` must be the SHA-256 of a manifest's text in 64 hex digits, or none")
    if head["profile"] not in set(Profile):
        _fail(f"`profile` is {head['profile'][:40]!r}, and must be {' or '.join(Profile)}")
    name, _, key = head["broker"].partition(" ")
    try:
        broker = Broker(name, parse_public(key, Kind.BROKER))
    except KeySourceError as error:
        _fail(f"`broker`: {error}")
    return Manifest(
        operator=head["operator"],
        epoch_id=_number("epoch", head["epoch"]),
        previous=None if previous == "none" else bytes.fromhex(previous),
        from_s=parse_utc(head["from"]),
        until_s=parse_utc(head["until"]),
        retire_s=parse_utc(head["retire"]),
        broker=broker,
        tick_ms=_number("tick", head["tick"].removesuffix("ms")),
        profile=Profile(head["profile"]),
        faults=_number("faults", head["faults"]),
        rate_factor=_number("rate", head["rate"]),
        embedding=head["embedding"],
        quorum=_number("quorum", head["quorum"]),
        witnesses=witnesses,
        vantages=vantages,
        quarantined=quarantined,
        revoked=revoked,
    )


def _difference(given: str, canonical: str) -> str:
    """Where a text leaves the one form its content has."""
    pairs = zip(given.split("\n"), canonical.split("\n"), strict=False)
    for number, (mine, right) in enumerate(pairs, start=1):
        if mine != right:
            return f"line {number}: there is one way to write this manifest, and here it has: {right}"
    return "there is one way to write this manifest: it ends after its last line, with a line end"

# SPDX-License-Identifier: Apache-2.0
"""Epochs: which key seals what, and until when a seal counts, as the operator's manifests say.

Keys of an epoch of profile cwt (salt and info ours; the sources name the construction, not the bytes)::

    ikm  = X25519(vantage key, broker key)
    salt = SHA-256(u16be len(operator id) || operator id || u64be epoch id)
    K    = HKDF-SHA256(ikm, salt, info = "mvps/v1/cwt/<purpose>" || 0x00 || vantage id)

so that no seal holds for another vantage, epoch or purpose. In profile trust the vantage signs its snapshots and the
broker its answers with their Ed25519 keys; vantage, epoch and purpose are in the signed header.

Which epoch an agent uses: the newest one it knows whose ``from`` has come by its own clock. What a broker accepts:

========  ==========================================================================================
live      sealed from `from` until before `until`, and before the earliest `retire` of a later epoch
backfill  sealed from `from` until before `until`; a host that was cut off could not know of a successor
both      nothing under a revoked key or a broker key that is revoked, from the moment the revoking
          manifest is known, in every epoch, even before that manifest's own `from`
========  ==========================================================================================

Sealing time is the host's own clock. It is the clock the host switched epochs by, so a host that knows the successor
never seals under an epoch that is retired at that time, whatever its clock says: no tick is lost. The overlap from
``from`` to ``retire`` is for hosts that learn of the successor late. As long as a clock is off by no more than the
overlap, nothing that was sealed after retirement by the broker's clock is accepted either. Who holds a retired key
can claim an earlier time; on the live lane that ends when the live window has passed since retirement by the
broker's clock, and a key in wrong hands is to be revoked, not retired.
"""

from __future__ import annotations

import hashlib
import struct
import threading
import time
from bisect import insort
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

from mvps.trust.keys import KEY_BYTES, Kind, PublicKey, SecretKey, hkdf
from mvps.trust.limits import MAX_MANIFESTS, MAX_SEALING_KEYS
from mvps.trust.manifest import Manifest, ManifestError, Profile, Vantage, check_successor, utc
from mvps.trust.reasons import RejectReason
from mvps.trust.seal import (
    Ed25519Signer,
    Ed25519Verifier,
    HmacKey,
    Lane,
    Purpose,
    Sealed,
    Sealer,
    SealError,
    SealingKey,
    parse_header,
)

_KeyName = tuple[str, int, Purpose]


class _Epoch(NamedTuple):
    """A manifest and when it leaves the live lane."""

    manifest: Manifest
    retire_ns: int


class Validity(NamedTuple):
    """When an epoch counts, by sealing time in ns: from ``from_ns`` until before ``until_ns``.

    On the live lane also only before ``retire_ns``. tick_ns: no snapshot of it has a shorter tick period. All of them
    are below 2**64.
    """

    from_ns: int
    until_ns: int
    retire_ns: int
    tick_ns: int = 0


class Epochs:
    """The epochs one agent or broker knows. Pure; safe for use by several threads.

    Make it with :meth:`of_agent` or :meth:`of_broker`. ``version`` rises whenever keys that were given out may no
    longer count: who keeps some of them drops them then.
    """

    def __init__(self, keys: Iterable[SecretKey], vantage_id: str | None) -> None:
        self._own = {key.public: key for key in keys}
        self._vantage_id: Final = vantage_id
        self._order: list[int] = []
        self._epochs: dict[int, _Epoch] = {}
        self._revoked: set[bytes] = set()
        self._keys: dict[_KeyName, SealingKey] = {}
        # Shared secrets by peer; they outlive epochs, so that a new one costs no key agreement.
        self._agreed: dict[tuple[PublicKey, PublicKey], bytes] = {}
        self._lock = threading.RLock()
        self.version = 0

    @classmethod
    def of_agent(cls, keys: Iterable[SecretKey], vantage_id: str) -> Epochs:
        """Epochs as the host of ``vantage_id`` sees them.

        keys: its key and, during a rotation, the one before (:func:`mvps.trust.keys.load_keys`).
        """
        return cls(_of_kind(keys, Kind.HOST), vantage_id)

    @classmethod
    def of_broker(cls, keys: Iterable[SecretKey]) -> Epochs:
        """Epochs as a broker sees them. keys: its key and, during a rotation, the one before."""
        return cls(_of_kind(keys, Kind.BROKER), None)

    # ---- manifests

    def add(self, manifest: Manifest) -> bool:
        """Take in a verified manifest, in any order; False if it changes nothing.

        Raises ManifestError, and stays as it was, if it does not fit those that are known. Beyond MAX_MANIFESTS the
        oldest is forgotten, and what is sealed under it is of an unknown epoch.
        """
        with self._lock:
            known = self._epochs.get(manifest.epoch_id)
            if known is not None:
                if known.manifest.digest == manifest.digest:
                    return False
                raise ManifestError(
                    f"there are two different manifests of epoch {manifest.epoch_id}, and the first one known stays in "
                    "force. The operator signed both: the next epoch has to say which is right"
                )
            if len(self._order) >= MAX_MANIFESTS and manifest.epoch_id < self._order[0]:
                return False
            self._check_neighbours(manifest)
            insort(self._order, manifest.epoch_id)
            epochs = {epoch_id: epoch.manifest for epoch_id, epoch in self._epochs.items()}
            epochs[manifest.epoch_id] = manifest
            if len(self._order) > MAX_MANIFESTS:
                forgotten = self._order.pop(0)
                del epochs[forgotten]
                self._forget(forgotten)
            self._epochs = _with_retirement(self._order, epochs)
            revoked = {gone.key_id for gone in manifest.revoked} - self._revoked
            if revoked:
                self._revoked |= revoked
                self._keys.clear()
            self.version += 1
            self._derive_own(manifest)
            return True

    @property
    def manifests(self) -> tuple[Manifest, ...]:
        """Those that are known, oldest first."""
        with self._lock:
            return tuple(self._epochs[epoch_id].manifest for epoch_id in self._order)

    def manifest(self, epoch_id: int) -> Manifest | None:
        """The manifest of that epoch; None if it is not known."""
        epoch = self._epochs.get(epoch_id)
        return epoch.manifest if epoch else None

    def current(self, now_ns: int) -> Manifest | None:
        """The newest manifest whose ``from`` has come; it may be over. None if there is none yet."""
        epochs = self._epochs
        for epoch_id in reversed(list(self._order)):
            epoch = epochs.get(epoch_id)
            if epoch is not None and epoch.manifest.from_ns <= now_ns:
                return epoch.manifest
        return None

    # ---- keys

    def hold(self, keys: Iterable[SecretKey]) -> None:
        """These are the own keys from now on, e.g. after a rotation."""
        held = _of_kind(keys, Kind.BROKER if self._vantage_id is None else Kind.HOST)
        with self._lock:
            self._own = {key.public: key for key in held}
            self._keys.clear()
            self._agreed.clear()
            self.version += 1
            for epoch in self._epochs.values():
                self._derive_own(epoch.manifest)

    def sealing_key(self, vantage_id: str, epoch_id: int, purpose: Purpose) -> SealingKey:
        """The key that seals, or verifies, one vantage's messages. SealError says why there is none."""
        return self._keys.get((vantage_id, epoch_id, purpose)) or self._derive(vantage_id, epoch_id, purpose)

    def sealing(self, now_ns: int) -> tuple[int, SealingKey]:
        """Epoch and key an agent's next snapshot is sealed with. SealError says why nothing can be sealed."""
        if self._vantage_id is None:
            raise ValueError("a broker seals no snapshots")
        manifest = self.current(now_ns)
        if manifest is None:
            why = "no manifest is known: install the operator's current one"
            for first in self.manifests[:1]:
                why = f"epoch {first.epoch_id} begins {utc(first.from_s)}: is this host's clock right?"
            raise SealError(RejectReason.UNKNOWN_EPOCH, why)
        if now_ns >= manifest.until_ns:
            raise SealError(
                RejectReason.EPOCH_RETIRED,
                f"epoch {manifest.epoch_id} ended {utc(manifest.until_s)}: the operator has to sign the next one",
            )
        return manifest.epoch_id, self.sealing_key(self._vantage_id, manifest.epoch_id, Purpose.SNAPSHOT)

    def prepare(self, epoch_id: int, limit: int) -> int:
        """Derive up to ``limit`` keys of an epoch before they are needed; how many vantages are left to do.

        A broker calls it between batches, so that the first tick of an epoch waits for no key.
        """
        epoch = self._epochs.get(epoch_id)
        if epoch is None:
            return 0
        left = [v for v in epoch.manifest.vantages if (v.vantage_id, epoch_id, Purpose.CONTROL) not in self._keys]
        left = [v for v in left if v.key.key_id not in self._revoked]
        for vantage in left[:limit]:
            try:
                for purpose in (Purpose.SNAPSHOT, Purpose.CONTROL):
                    self.sealing_key(vantage.vantage_id, epoch_id, purpose)
            except SealError:
                return 0  # the broker's own key is not this epoch's
        return max(len(left) - limit, 0)

    # ---- time

    def validity(self, epoch_id: int) -> Validity:
        """When an epoch counts (module docstring). SealError if it is not known."""
        epoch = self._epochs.get(epoch_id)
        if epoch is None:
            raise SealError(RejectReason.UNKNOWN_EPOCH, f"epoch {epoch_id} is not known: its manifest is missing")
        manifest = epoch.manifest
        return Validity(manifest.from_ns, manifest.until_ns, epoch.retire_ns, manifest.tick_ms * 1_000_000)

    # ---- with the lock held

    def _check_neighbours(self, manifest: Manifest) -> None:
        earlier = [epoch_id for epoch_id in self._order if epoch_id < manifest.epoch_id]
        later = [epoch_id for epoch_id in self._order if epoch_id > manifest.epoch_id]
        if earlier:
            check_successor(self._epochs[earlier[-1]].manifest, manifest)
        if later:
            check_successor(manifest, self._epochs[later[0]].manifest)

    def _forget(self, epoch_id: int) -> None:
        for name in [name for name in self._keys if name[1] == epoch_id]:
            del self._keys[name]

    def _derive_own(self, manifest: Manifest) -> None:
        """An agent's keys of a new epoch, now, so that no tick waits for them."""
        if self._vantage_id is None:
            return
        for purpose in (Purpose.SNAPSHOT, Purpose.CONTROL):
            try:
                self._derive(self._vantage_id, manifest.epoch_id, purpose)
            except SealError:
                return  # said again when the key is asked for

    # ---- derivation

    def _derive(self, vantage_id: str, epoch_id: int, purpose: Purpose) -> SealingKey:
        # Under the lock, so that a revocation cannot come between the check and the cache.
        with self._lock:
            epoch = self._epochs.get(epoch_id)
            if epoch is None:
                raise SealError(RejectReason.UNKNOWN_EPOCH, f"epoch {epoch_id} is not known: its manifest is missing")
            manifest = epoch.manifest
            vantage = self._admitted(manifest, vantage_id)
            own = self._own.get(vantage.key if self._vantage_id is not None else manifest.broker.key)
            if own is None:
                raise self._no_own_key(manifest, vantage)
            key = self._make(manifest, vantage, own, purpose)
            if len(self._keys) >= MAX_SEALING_KEYS:
                del self._keys[next(iter(self._keys))]
            self._keys[vantage_id, epoch_id, purpose] = key
            return key

    def _admitted(self, manifest: Manifest, vantage_id: str) -> Vantage:
        """The vantage, if its seals count at all."""
        vantage = manifest.vantage(vantage_id)
        if vantage is None or self._vantage_id not in (None, vantage_id):
            if any(gone.vantage_id == vantage_id for gone in manifest.revoked):
                raise SealError(RejectReason.REVOKED, f"the key of {vantage_id} is revoked: rotate it and enrol again")
            raise SealError(
                RejectReason.UNKNOWN_VANTAGE,
                f"epoch {manifest.epoch_id} does not admit {vantage_id}: mvps enroll request, and the operator "
                "approves it into the next epoch",
            )
        for name, key in ((vantage_id, vantage.key), (manifest.broker.name, manifest.broker.key)):
            if key.key_id in self._revoked:
                raise SealError(
                    RejectReason.REVOKED,
                    f"key {key.key_id.hex()} of {name}, which epoch {manifest.epoch_id} names, is revoked: "
                    "rotate it and enrol the new one",
                )
        return vantage

    def _no_own_key(self, manifest: Manifest, vantage: Vantage) -> SealError:
        name, named = (vantage.vantage_id, vantage.key) if self._vantage_id is not None else manifest.broker
        held = ", ".join(public.key_id.hex() for public in self._own)
        return SealError(
            RejectReason.UNKNOWN_KEY,
            f"epoch {manifest.epoch_id} names key {named.key_id.hex()} for {name}, and {held or 'none'} is held here: "
            "restart after a rotation, or enrol the key that is held",
        )

    def _make(self, manifest: Manifest, vantage: Vantage, own: SecretKey, purpose: Purpose) -> SealingKey:
        broker = manifest.broker.key
        seals = broker if purpose is Purpose.CONTROL else vantage.key
        if manifest.profile is Profile.TRUST:
            return Ed25519Signer(own) if seals == own.public else Ed25519Verifier(seals)
        peer = broker if self._vantage_id is not None else vantage.key
        agreed = self._agreed.get((own.public, peer))
        if agreed is None:
            try:
                agreed = own.exchange(peer)
            except ValueError:
                raise SealError(
                    RejectReason.UNKNOWN_KEY, f"key {peer.key_id.hex()} shares no secret with anybody: replace it"
                ) from None
            if len(self._agreed) >= MAX_SEALING_KEYS:
                self._agreed.clear()
            self._agreed[own.public, peer] = agreed
        return HmacKey(cwt_key(agreed, manifest.operator, manifest.epoch_id, purpose, vantage.vantage_id), seals.key_id)


class EpochSealer:
    """Seals one vantage's snapshots, each under the epoch of its sealing time.

    counter: gives the next counter of a lane.
    clock: sealing time in ns since the Unix epoch, read once a snapshot: the epoch and the header cannot disagree.
    """

    def __init__(
        self,
        epochs: Epochs,
        vantage_id: str,
        counter: Callable[[Lane], int],
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._epochs = epochs
        self._vantage_id = vantage_id
        self._counter = counter
        self._clock = clock

    def seal(self, body: bytes, tick: int) -> Sealed:
        """Seal ``body``, live lane. SealError if no epoch admits this host now, ValueError if the body is too large."""
        return self._seal(body, tick, Lane.LIVE, self._clock())

    def backfill(self, sealed: Sealed) -> Sealed:
        """The same snapshot for the backfill lane: new counter, old sealing time, and the epoch of that time.

        SealError if no epoch of that time admits this host.
        """
        header = parse_header(sealed.header)
        return self._seal(sealed.body, header.tick, Lane.BACKFILL, header.time_ns)

    def again(self, sealed: Sealed, epoch_id: int, counter: int) -> Sealed:
        """The copy that :meth:`backfill` made of ``sealed`` with this epoch and counter, octet for octet.

        SealError if that epoch admits this host no more.
        """
        header = parse_header(sealed.header)
        sealer = Sealer(
            self._epochs.sealing_key(self._vantage_id, epoch_id, Purpose.SNAPSHOT),
            self._vantage_id,
            Purpose.SNAPSHOT,
            lambda lane: counter,
            epoch_id=epoch_id,
            clock=lambda: header.time_ns,
        )
        return sealer.seal(sealed.body, header.tick, Lane.BACKFILL)

    def _seal(self, body: bytes, tick: int, lane: Lane, time_ns: int) -> Sealed:
        epoch_id, key = self._epochs.sealing(time_ns)
        sealer = Sealer(
            key, self._vantage_id, Purpose.SNAPSHOT, self._counter, epoch_id=epoch_id, clock=lambda: time_ns
        )
        return sealer.seal(body, tick, lane)


def cwt_key(ikm: bytes, operator: str, epoch_id: int, purpose: Purpose, vantage_id: str) -> bytes:
    """K of the module docstring, 32 bytes."""
    name = operator.encode()
    salt = hashlib.sha256(struct.pack(">H", len(name)) + name + struct.pack(">Q", epoch_id)).digest()
    info = b"mvps/v1/cwt/" + purpose.name.lower().encode() + b"\0" + vantage_id.encode()
    return hkdf(ikm, salt, info, KEY_BYTES)


def _of_kind(keys: Iterable[SecretKey], kind: Kind) -> list[SecretKey]:
    held = list(keys)
    for key in held:
        if key.kind is not kind:
            raise ValueError(f"a {kind} key is needed, and this is a {key.kind} key")
    return held


def _with_retirement(order: list[int], manifests: Mapping[int, Manifest]) -> dict[int, _Epoch]:
    """Every epoch with the earliest ``retire`` of those after it."""
    epochs: dict[int, _Epoch] = {}
    retire_ns = (1 << 63) - 1
    for epoch_id in reversed(order):
        epochs[epoch_id] = _Epoch(manifests[epoch_id], retire_ns)
        retire_ns = min(retire_ns, manifests[epoch_id].retire_ns)
    return epochs

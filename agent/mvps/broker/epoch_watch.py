# SPDX-License-Identifier: Apache-2.0
"""The epochs a broker serves: the operator's manifests from a directory, looked at every second.

A manifest that is dropped there counts within a second, without a restart: that is how a revocation takes effect at
once. Vantages whose epoch is older get the newer manifests with their next answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from mvps.broker.evidence import Signing
from mvps.broker.settings import BrokerSettings
from mvps.trust.epochs import Epochs
from mvps.trust.keys import Kind, load_keys, load_public
from mvps.trust.limits import MAX_MANIFESTS, MAX_PUSHED_MANIFEST_BYTES
from mvps.trust.manifest import ManifestError
from mvps.trust.manifest_folder import FolderError, ManifestFolder

_SCAN_S = 1.0
# A clock that moves this much against the monotonic one within a second was set.
_STEP_NS = 250_000_000
# Keys of a new epoch are derived in slices, so that streams go on meanwhile; one takes about 0.1 ms.
_SLICE = 50


class NoEpochError(Exception):
    """There is no manifest to serve under. The message says what to do."""


class EpochWatch:
    """Loads the manifests at construction; :meth:`run` keeps them current and watches the clock.

    Raises KeySourceError for a key that cannot be used, NoEpochError when there is no manifest that counts.
    """

    def __init__(self, settings: BrokerSettings) -> None:
        keys = load_keys(settings.key, Kind.BROKER)
        self._keys = {key.public: key for key in keys}
        self.epochs = Epochs.of_broker(keys)
        self._folder = ManifestFolder(settings.manifests, load_public(settings.operator, Kind.OPERATOR))
        self._signed: dict[int, bytes] = {}
        # Manifests that fit no others, by digest; what a file's own fault is stands in the folder's ``refused``.
        self._unfit: dict[bytes, str] = {}
        self._folder_error = ""
        self.clock_steps = 0
        self.last_clock_step_ns = 0
        # Id of the newest epoch, also one that has not begun.
        self.newest = -1
        self._look()
        if not self.epochs.manifests:
            raise NoEpochError(
                "; ".join(self.refused)
                or f"no manifest of the operator in {settings.manifests}: sign one (mvps epoch new, mvps epoch sign) "
                "and put it there as NAME.manifest"
            )

    @property
    def refused(self) -> list[str]:
        """Manifests that do not count, each with the reason."""
        words = [f"{name}: {reason}" for name, reason in sorted(self._folder.refused.items())]
        return [*words, *self._unfit.values(), *([self._folder_error] if self._folder_error else [])]

    def newer_than(self, epoch_id: int) -> list[bytes]:
        """Signed manifests after ``epoch_id`` that are small enough to pass on, oldest first."""
        return [signed for known, signed in sorted(self._signed.items()) if known > epoch_id]

    def signing(self, now_ns: int) -> Signing | None:
        """Under what a checkpoint of this moment is signed; None when the epoch in force names another broker's key."""
        manifest = self.epochs.current(now_ns)
        key = self._keys.get(manifest.broker.key) if manifest else None
        if manifest is None or key is None:
            return None
        return Signing(manifest.broker.name, key, manifest.digest, manifest.faults, manifest.quorum, manifest.witnesses)

    async def run(self, revoked: Callable[[], None]) -> None:
        """Until cancelled. ``revoked`` is called whenever keys that were given out may not count any more."""
        wall, steady = time.time_ns(), time.monotonic_ns()
        while True:
            await asyncio.sleep(_SCAN_S)
            step = (time.time_ns() - wall) - (time.monotonic_ns() - steady)
            wall, steady = time.time_ns(), time.monotonic_ns()
            if abs(step) > _STEP_NS:
                self.clock_steps += 1
                self.last_clock_step_ns = step
            version, newest = self.epochs.version, self.newest
            # Reading and verifying the signature of a large manifest takes a second: not in the event loop.
            await asyncio.to_thread(self._look)
            if self.epochs.version != version:
                revoked()
            if self.newest != newest:
                while self.epochs.prepare(self.newest, _SLICE):
                    await asyncio.sleep(0)

    def _look(self) -> None:
        try:
            opened = self._folder.scan()
        except FolderError as error:
            self._folder_error = str(error)
            return
        self._folder_error = ""
        for manifest, signed in opened:
            try:
                self.epochs.add(manifest)
            except ManifestError as error:
                self._unfit[manifest.digest] = str(error)
                continue
            self._unfit.pop(manifest.digest, None)
            if len(signed) <= MAX_PUSHED_MANIFEST_BYTES:
                self._signed[manifest.epoch_id] = signed
        while len(self._unfit) > MAX_MANIFESTS:
            del self._unfit[next(iter(self._unfit))]
        known = {manifest.epoch_id for manifest in self.epochs.manifests}
        self.newest = max(known, default=-1)
        for forgotten in self._signed.keys() - known:
            del self._signed[forgotten]

# SPDX-License-Identifier: Apache-2.0
"""The agent's end of the road to the broker: counter, sealer, spool and stream client behind one door."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import grpc

from mvps.daemon.identity import Identity
from mvps.stream.client import DEFAULT_LATE_RATE, StreamClient, StreamStatus
from mvps.stream.ledger import Record
from mvps.stream.spool import Spool
from mvps.trust.counter import Counter
from mvps.trust.epochs import Epochs, EpochSealer
from mvps.trust.keys import KeySourceError
from mvps.trust.limits import MAX_MANIFESTS
from mvps.trust.reasons import RejectReason
from mvps.trust.seal import Purpose, Sealed, SealError, Verifier
from mvps.v1.local_pb2 import SnapshotRecord, StreamState

# How long a stopping agent waits for answers to what it has sealed.
DRAIN_SECONDS = 1.0


class HostSealer(EpochSealer):
    """What :class:`mvps.stream.outbox.Resealer` asks for, under the operator's manifests."""

    def __init__(self, epochs: Epochs, vantage_id: str, counter: Counter) -> None:
        super().__init__(epochs, vantage_id, counter.next)
        self._known = epochs
        self._own = Verifier(epochs, Purpose.SNAPSHOT)

    def check(self, sealed: Sealed) -> None:
        """SealError unless the seal holds under this host's own key."""
        self._own.verify(sealed)

    def hopeless(self, error: SealError) -> str:
        """Only what the operator has signed is for good: a revocation, and so many epochs that one is forgotten."""
        if error.reason is RejectReason.REVOKED:
            return "revoked"
        if error.reason is RejectReason.UNKNOWN_EPOCH and len(self._known.manifests) >= MAX_MANIFESTS:
            return "epoch_forgotten"
        return ""


class BrokerUplink:
    """Seals snapshots and streams them to a broker.

    counter: a claimed generation; owned from here on.
    queue: sealed snapshots kept in memory only, while the spool cannot take them.
    spool: owned from here on; None keeps everything in memory.
    late_rate, credentials: see :class:`mvps.stream.client.StreamClient`.
    """

    def __init__(
        self,
        target: str,
        vantage_id: str,
        identity: Identity,
        counter: Counter,
        queue: int,
        *,
        spool: Spool | None = None,
        late_rate: float = DEFAULT_LATE_RATE,
        credentials: Callable[[], grpc.ChannelCredentials] | None = None,
    ):
        self._identity = identity
        self._counter = counter
        self._sealer = HostSealer(identity.epochs, vantage_id, counter)
        self._client = StreamClient(
            target,
            vantage_id,
            Verifier(identity.epochs, Purpose.CONTROL),
            resealer=self._sealer,
            manifests=identity.receive,
            spool=spool,
            queue_limit=queue,
            late_rate=late_rate,
            credentials=credentials,
        )
        self._client.start()
        self._unsealed = dict.fromkeys(("oversize", "no_epoch"), 0)
        self._why_unsealed = ""

    @property
    def key_id(self) -> str:
        """Id of the host's key."""
        return self._identity.key.public.key_id.hex()

    def submit(self, body: bytes, tick: int) -> None:
        """Seal one snapshot and queue it; one that cannot be sealed is counted in :meth:`losses`."""
        try:
            sealed = self._sealer.seal(body, tick)
        except ValueError:
            self._unsealed["oversize"] += 1
            return
        except SealError as error:
            self._unsealed["no_epoch"] += 1
            self._why_unsealed = error.detail
            return
        self._why_unsealed = ""
        self._client.submit(sealed)

    def losses(self) -> Mapping[str, int]:
        """Snapshots that were never sealed: too large, or no epoch admits this host."""
        return self._unsealed

    def state(self) -> StreamState:
        """Counts, connection and epoch."""
        state = _state(self._client.status())
        state.manifest_error = self._identity.manifest_error
        manifest = self._identity.epochs.current(time.time_ns())
        if manifest is not None:
            state.epoch_id = manifest.epoch_id
            state.profile = manifest.profile
            state.epoch_until_ns = manifest.until_ns
        if self._why_unsealed:
            state.state, state.detail = "refused", self._why_unsealed
        return state

    def refresh(self) -> None:
        """Read key and manifests again. ValueError, and nothing changes, if the key cannot be used."""
        try:
            self._identity.refresh()
        except KeySourceError as error:
            raise ValueError(f"trust.key: {error}") from None

    def records(self) -> Sequence[SnapshotRecord]:
        """Recent snapshots and what became of them, oldest first."""
        return [_record(record) for record in self._client.records()]

    def policies(self) -> bytes:
        """What the broker said last of the policies of this host's tenants; b"" for nothing."""
        return self._client.policies

    def retarget(self, target: str) -> None:
        """Send to another broker from now on. ValueError for none: what is queued would be stuck."""
        if not target:
            raise ValueError("broker.target: sending cannot be switched off while running; restart the agent")
        self._client.retarget(target)

    def close(self) -> None:
        """Give what is unsettled a moment to be answered, then end; the rest stays in the spool."""
        self._client.stop(DRAIN_SECONDS)
        self._counter.close()


def _state(status: StreamStatus) -> StreamState:
    totals = status.totals
    return StreamState(
        target=status.target,
        state=status.state,
        detail=status.detail,
        produced=totals.produced,
        acknowledged=totals.acknowledged,
        rejected=totals.rejected,
        queued=totals.queued,
        spooled=totals.spooled,
        recovered=totals.recovered,
        spool_bytes=status.spool_bytes,
        spool_error=status.spool_error,
        dropped=totals.dropped,
        rejected_by_reason=totals.rejected_by_reason,
        dropped_by_cause=totals.dropped_by_cause,
        forged_acks=status.forged_acks,
        reconnects=status.reconnects,
        last_ack_ns=status.last_ack_ns,
        backfilled=status.backfilled,
        clock_offset_ns=status.clock_offset_ns,
    )


def _record(record: Record) -> SnapshotRecord:
    return SnapshotRecord(
        counter=record.counter,
        lane=record.lane,
        tick=record.tick,
        state=int(record.state),  # type: ignore[arg-type]  # the ledger's numbers are the schema's
        reason=int(record.reason or 0),  # type: ignore[arg-type]
        cause=record.cause,
        sealed_ns=record.sealed_ns,
        settled_ns=record.settled_ns,
        bytes=record.size,
    )

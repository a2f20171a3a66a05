# SPDX-License-Identifier: Apache-2.0
"""The agent's end of the road to the broker: counter, sealer and stream client behind one door."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mvps.stream.client import StreamClient, StreamStatus
from mvps.stream.ledger import Record
from mvps.trust.counter import Counter
from mvps.trust.keys import SecretKey
from mvps.trust.seal import Keyring, Purpose, Sealer, Verifier
from mvps.v1.local_pb2 import SnapshotRecord, StreamState

# How long a stopping agent waits for answers to what it has sealed.
DRAIN_SECONDS = 1.0


class BrokerUplink:
    """Seals snapshots and streams them to a broker.

    counter: a claimed generation; owned from here on.
    queue: sealed snapshots kept while the broker is away.
    """

    def __init__(self, target: str, vantage_id: str, key: SecretKey, operator_id: str, counter: Counter, queue: int):
        self.key_id = key.key_id.hex()
        self._counter = counter
        self._sealer = Sealer(key, vantage_id, Purpose.SNAPSHOT, counter.next, operator_id=operator_id)
        acks = Verifier(Keyring({vantage_id: key}, operator_id=operator_id), Purpose.CONTROL)
        self._client = StreamClient(target, vantage_id, acks, queue_limit=queue)
        self._client.start()
        self._oversize = 0

    @classmethod
    def open(
        cls, target: str, vantage_id: str, key: SecretKey, operator_id: str, state_dir: Path, queue: int
    ) -> BrokerUplink:
        """Claim a generation in ``state_dir`` and start the client. CounterError says what to do."""
        return cls(target, vantage_id, key, operator_id, Counter(state_dir / "counter"), queue)

    def submit(self, body: bytes, tick: int) -> None:
        """Seal one snapshot and queue it; one too large to seal is counted in ``oversize``."""
        try:
            sealed = self._sealer.seal(body, tick)
        except ValueError:
            self._oversize += 1
            return
        self._client.submit(sealed)

    @property
    def unsealed(self) -> int:
        """Snapshots that were too large to seal."""
        return self._oversize

    def state(self) -> StreamState:
        """Counts and connection."""
        return _state(self._client.status())

    def records(self) -> Sequence[SnapshotRecord]:
        """Recent snapshots and what became of them, oldest first."""
        return [_record(record) for record in self._client.records()]

    def retarget(self, target: str) -> None:
        """Send to another broker from now on. ValueError for none: what is queued would be stuck."""
        if not target:
            raise ValueError("broker.target: sending cannot be switched off while running; restart the agent")
        self._client.retarget(target)

    def close(self) -> None:
        """Give what is queued a moment to be answered, then end."""
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
        dropped=totals.dropped,
        rejected_by_reason=totals.rejected_by_reason,
        dropped_by_cause=totals.dropped_by_cause,
        forged_acks=status.forged_acks,
        reconnects=status.reconnects,
        last_ack_ns=status.last_ack_ns,
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

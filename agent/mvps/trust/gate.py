# SPDX-License-Identifier: Apache-2.0
"""The gate: what every sealed snapshot passes before a broker looks into it, in native code.

One call judges a batch, each item in this order and no other:

1. header: fixed layout and limits; purpose and lengths (:mod:`mvps.trust.seal`);
2. key and seal. The keys of vantages that were heard are held here. Any other is asked of the key source, and held
   only once a seal has held under it, so that names nobody can seal for do not fill the memory. HMAC keys verify
   inside the gate; any other kind of key is called;
3. counter, strictly above the highest one of (vantage, epoch, lane). Before time, since a duplicate of an accepted
   snapshot is a duplicate however old it has become;
4. time: inside the window around now, backfill from where :meth:`Gate.take_backfill_from` says, and sealed while its
   epoch counted (:mod:`mvps.trust.epochs`);
5. body: wire format, closed schema, limits and domains, canonical only (native/snapshot.h says what that is), and no
   tick period below the epoch's. The counter is spent whatever the body is worth.

It ends with the first item whose seal does not hold. What follows spends no counter, so that its sender, whose stream
is ended, can send it again in order.

Counters are tentative until :meth:`Gate.commit`; :meth:`Gate.rewind` takes back what a failed commit never stored.
A gate is the only place that holds them, and the only one that holds keys beside their source: call
:meth:`Gate.forget_keys` when the source says that keys given out may no longer count.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from mvps.trust import _gate
from mvps.trust._gate import (
    SCHEMA_VERSION,
    Batch,
    Figures,
    Gate,
    HmacKey,
    Judged,
    Refusal,
    Run,
    SurfaceFigures,
    parse_header,
)
from mvps.trust.epochs import Validity
from mvps.trust.limits import MAX_VANTAGES
from mvps.trust.replay import LaneKey, Window
from mvps.trust.seal import KeySource, Purpose, SealError, SealHeader

__all__ = [
    "SCHEMA_VERSION",
    "Batch",
    "EpochSource",
    "Figures",
    "Gate",
    "HmacKey",
    "Judged",
    "Refusal",
    "Run",
    "SurfaceFigures",
    "Validity",
    "check_body",
    "open_gate",
    "parse_header",
]


class EpochSource(KeySource, Protocol):
    """Knows every sealing key and every epoch's times, as :class:`mvps.trust.epochs.Epochs` does."""

    def validity(self, epoch_id: int) -> Validity:
        """Times of an epoch for which there is a sealing key; SealError with the reason why there are none."""


def open_gate(
    epochs: EpochSource,
    window: Window,
    *,
    max_vantages: int = MAX_VANTAGES,
    committed: Mapping[LaneKey, int] | None = None,
) -> Gate:
    """A gate for snapshots.

    committed: counters the store has; their vantages count towards ``max_vantages`` and are never refused for it.
    """

    def resolve(vantage_id: str, epoch_id: int) -> Refusal | tuple[_gate.SealingKey, int, int, int, int]:
        try:
            key = epochs.sealing_key(vantage_id, epoch_id, Purpose.SNAPSHOT)
            validity = epochs.validity(epoch_id)
        except SealError as error:
            return Refusal(error.reason, error.detail)
        return key, *validity

    gate = Gate(resolve, window.live_past_ns, window.backfill_past_ns, window.future_ns, max_vantages)
    for (vantage_id, epoch_id, lane), counter in (committed or {}).items():
        gate.commit(vantage_id, epoch_id, lane, counter)
    return gate


def check_body(body: bytes, header: SealHeader, window: Window) -> Refusal | None:
    """None if a broker may take ``body`` at its word; :meth:`Gate.admit` has done this already."""
    return _gate.check_body(body, header.vantage_id, header.tick, header.time_ns, window.live_past_ns, window.future_ns)

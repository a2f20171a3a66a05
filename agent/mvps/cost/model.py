# SPDX-License-Identifier: Apache-2.0
"""Closed forms of what a broker and an AI vantage cost, and of what a flood can do to a broker.

Let N vantages send one snapshot each per tick of T seconds, and let a snapshot cost the broker c microseconds of CPU
on the path from the wire to the verdict. Then, in cores:

T-JCOST-1 (001 sec. 23.1)
    load = N / T * c_path / 1e6, with c_path the sum of the path's parts. The form of the companion draft, which also
    has a quorum q and a bundle period, could not be had; ours adds (c_bundle + q * c_cosign) / 1e6 / bundle_period,
    which no N multiplies.
T-JCOST-AI-1 (001 sec. 23.3)
    at the broker T-JCOST-1 with c_path = c_hmac + c_parse, whatever axes the vantage computes. At the vantage

        busy seconds a tick = ((c_sw2 + c_cka) * n (n - 1) / 2 + K_4 * c_pass * n) / 1e6        for n replicas

    and the load is that over T (the source gives the seconds as if they were the load).
T-VDOS-1 (perfsec-coupling sec. 4, as 001 sec. 23.5 cites it)
    A vantage that sends ``flood`` times its rate makes the broker's work for it at most

        factor + flood * c_xdp / c_path

    times the natural one: ``factor`` snapshots a tick get through, and the rest is dropped in XDP at c_xdp each.
    Without the limiter it is ``flood``. ``packets`` (ours) is how many packets one snapshot is on the wire, because XDP
    counts packets and the path counts snapshots.

Pure. All costs in microseconds, times in seconds, loads in cores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final, NamedTuple


@dataclass(frozen=True)
class Constants:
    """Costs in microseconds; None for what is not known.

    hmac: seal and replay; parse: from bytes to checked values; grpc: transport and acknowledgement; log: Merkle leaf
    and its share of a durable commit; cosign, bundle: of a bundle period; xdp: a dropped packet; sw2, cka: one pair of
    replicas; model_pass: one forward pass of C_4.
    """

    hmac: float | None = None
    parse: float | None = None
    grpc: float | None = None
    log: float | None = None
    bundle: float | None = None
    cosign: float | None = None
    xdp: float | None = None
    sw2: float | None = None
    cka: float | None = None
    model_pass: float | None = None

    def known(self) -> Mapping[str, float]:
        """Name -> microseconds, of those that are known."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def path(self) -> float:
        """c_path: every known part of a snapshot's way through the broker."""
        return sum(value for value in (self.hmac, self.parse, self.grpc, self.log) if value is not None)


# 001 sec. 23.2. It states no c_xdp, c_grpc or cost of the log. Its c_c4_per_tick of 200 ms is 5 passes of 10 ms on 4
# replicas.
SEED: Final = Constants(hmac=2.10, parse=4.20, sw2=1_000.0, cka=5_000.0, model_pass=10_000.0)


def joint_broker_load(
    vantages: int, tick_s: float, constants: Constants, *, quorum: int = 0, bundle_period_s: float = 0.0
) -> float:
    """T-JCOST-1: cores of the broker. bundle_period_s: 0 leaves the checkpoints out."""
    _positive(vantages=vantages, tick_s=tick_s)
    load = vantages / tick_s * constants.path / 1e6
    if bundle_period_s > 0:
        load += ((constants.bundle or 0.0) + quorum * (constants.cosign or 0.0)) / 1e6 / bundle_period_s
    return load


class VantageLoad(NamedTuple):
    """What an AI vantage keeps busy: seconds a tick, and cores (or accelerators) at T."""

    seconds: float
    cores: float


def ai_vantage_load(replicas: int, passes: int, tick_s: float, constants: Constants) -> VantageLoad:
    """T-JCOST-AI-1 at the vantage. passes: K_4. ValueError if a constant it needs is not known."""
    _positive(replicas=replicas, tick_s=tick_s)
    missing = [name for name in ("sw2", "cka", "model_pass") if getattr(constants, name) is None]
    if missing:
        raise ValueError(f"unknown constants: {', '.join(missing)}")
    pairs = replicas * (replicas - 1) / 2
    busy_us = ((constants.sw2 or 0.0) + (constants.cka or 0.0)) * pairs + passes * (
        constants.model_pass or 0.0
    ) * replicas
    return VantageLoad(busy_us / 1e6, busy_us / 1e6 / tick_s)


def flood_multiplier(flood: float, factor: float, constants: Constants, *, packets: float = 1.0) -> float:
    """T-VDOS-1: bound on the broker's work for a vantage that sends ``flood`` times its rate.

    factor: snapshots per natural one that the limits let through. ValueError if c_xdp or c_path is not known.
    """
    _positive(flood=flood, factor=factor, packets=packets)
    if constants.xdp is None or not constants.path:
        raise ValueError("c_xdp or c_path is not known")
    return min(flood, factor + flood * packets * constants.xdp / constants.path)


class Claim(NamedTuple):
    """A figure the source prints for its own constants, and what its formula gives. Units as printed."""

    where: str
    what: str
    unit: str
    printed: float
    computed: float

    @property
    def holds(self) -> bool:
        """Whether the printed figure is the computed one, to the two digits it is printed with."""
        return abs(self.printed - self.computed) <= 0.05 * abs(self.computed)


def claims() -> list[Claim]:
    """001 sec. 23.4 against 001 sec. 23.2 and 23.3."""
    slow = joint_broker_load(10, 1.0, SEED) * 100
    fast = joint_broker_load(10, 0.05, SEED) * 100
    vantage = ai_vantage_load(4, 5, 1.0, SEED)
    thousand = joint_broker_load(1000, 1.0, Constants(hmac=SEED.hmac)) * 100
    return [
        Claim("001 sec. 23.4", "broker, N = 10, T = 1 s", "% of a core", 0.063, slow),
        Claim("001 sec. 23.4", "broker, N = 10, T = 50 ms", "% of a core", 1.26, fast),
        Claim("001 sec. 23.4", "vantage, 4 replicas, K_4 = 5, T = 1 s", "s a tick", 2.06, vantage.seconds),
        Claim("001 sec. 23.5", "broker, HMAC alone, N = 1000, T = 1 s", "% of a core", 0.21, thousand),
    ]


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, not {value}")

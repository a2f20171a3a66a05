# SPDX-License-Identifier: Apache-2.0
"""The limiter on a table: loaded with a plan, attached to nothing, asked about one packet at a time."""

from __future__ import annotations

import ipaddress
from types import TracebackType

from mvps.limiter import layout
from mvps.limiter.attach import load, program_fd
from mvps.limiter.plan import Plan, Price, Shard
from mvps.probes import libbpf

PORT = 7447
# A budget that does not come back while a test runs: a packet takes 1000 s, a byte 1 s.
SLOW_NS = 10**12
BYTE_NS = 10**9


def packets(number: int) -> Price:
    """A budget of so many packets of any length."""
    return Price(SLOW_NS, 0, number * SLOW_NS)


def size(number: int) -> Price:
    """A budget of so many bytes, in any packets."""
    return Price(0, BYTE_NS * 1024, number * BYTE_NS)


AMPLE = packets(10**6)


def plan_of(
    *prefixes: str,
    flow: Price = AMPLE,
    host: Price = AMPLE,
    handshake: Price = AMPLE,
    total: Price = AMPLE,
    idle_ns: int = 3600 * 10**9,
) -> Plan:
    """A plan whose shards all have the same budgets."""
    shards = [None, *map(ipaddress.ip_network, prefixes)]
    return Plan(PORT, flow, host, tuple(Shard(prefix, 1, handshake, total) for prefix in shards), idle_ns, 0)


class Table:
    """A loaded limiter."""

    def __init__(self, plan: Plan) -> None:
        self.program = load(plan)
        self.fd = program_fd(self.program)
        self.maps = {name: self.program.map(name) for name in (*layout.PLAN_MAPS, *layout.LASTING_MAPS)}

    def __enter__(self) -> Table:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one in self.maps.values():
            one.close()
        self.program.close()

    def _sums(self) -> list[int]:
        cells = layout.VERDICT_CELL.iter_unpack(self.maps["verdicts"].get(layout.INDEX.pack(0)) or b"")
        return [sum(column) for column in zip(*cells, strict=True)]

    def packets(self) -> dict[str, int]:
        """Packets by verdict so far."""
        return dict(zip(layout.VERDICTS, self._sums()[: len(layout.VERDICTS)], strict=True))

    def bytes(self) -> dict[str, int]:
        """Bytes by verdict so far."""
        return dict(zip(layout.VERDICTS, self._sums()[len(layout.VERDICTS) : -1], strict=True))

    def idle(self) -> int:
        """Packets of flows that were idle for too long."""
        return self._sums()[-1]

    def judge(self, packet: bytes) -> str:
        """What becomes of a packet: its verdict, or "untouched" when it passed and was not counted."""
        before = self.packets()
        action, _ = libbpf.run_packet(self.fd, packet)
        after = self.packets()
        changed = [name for name in after if after[name] != before[name]]
        if not changed:
            assert action == 2, "dropped and not counted"
            return "untouched"
        (verdict,) = changed
        assert after[verdict] == before[verdict] + 1
        assert action == (2 if verdict in layout.PASSED else 1), verdict
        return verdict

    def prove(self, address: str, port: int, vantages: int = 1) -> bytes:
        """Enter a flow as the broker does; returns its key."""
        key = layout.flow_key(ipaddress.ip_address(address), port)
        self.maps["flows"].put(key, layout.new_flow(vantages))
        return key

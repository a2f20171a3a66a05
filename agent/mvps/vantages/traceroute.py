# SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
"""The process that probes paths: ``python -m mvps.vantages.traceroute``, started by probing.py only.

Paris traceroute (Augustin et al. 2006): every probe of a *flow* has one 5-tuple and one UDP checksum, so that a
router which spreads flows over equal paths sends all of them the same way. Probes tell themselves apart by their
length alone, which the eight octets of UDP header quoted in any ICMP error carry (RFC 792, RFC 4443), and two octets
of payload take the length back out of the checksum.

Probes leave through ordinary UDP sockets. A hand-made packet would not do: the kernel leaves the ports of raw packets
out of its multipath hash, and they would take another first hop than the host's own traffic. Answers come in on raw
ICMP sockets and are dissected by scapy. Opening those sockets is all the privilege needed (CAP_NET_RAW); it is given
up, with every other capability, before scapy is imported or a packet read.

Standard input: the plan as one JSON line, then nothing; its end is the order to end, so that this process does not
outlive its agent. Standard output: one JSON object a line,

    {"failed": why}                                                                    and the process ends
    {"destination", "flow", "hops": [[address, RTT in s] or null, ...], "reached", "counts"}       per walk
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import select
import signal
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from mvps.vantages.probe_plan import MAX_TTL, ProbePlan

DESTINATION_PORT = 33434  # traceroute's: closed on nearly every host, open in nearly every firewall
SOURCE_PORT = 31434  # flow k leaves from this + k; below Linux's ephemeral range
# Hops in a row that may stay silent before a walk is given up.
GAP = 5
# Walks after which a probe's length comes again: answers to older walks are late, not wrong.
_ROUNDS = 4
_HEADER = 8  # octets of a UDP header
_SO_ATTENTION = select.POLLIN | select.POLLHUP | select.POLLERR

_SOL_RAW, _ICMP_FILTER, _ICMPV6_FILTER = 255, 1, 1
_IPV6_FLOWINFO_SEND = 33
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION_3 = 0x20080522
_UNREACHABLE, _EXPIRED = {4: 3, 6: 1}, {4: 11, 6: 3}


def probe_number(ttl: int, round_: int) -> int:
    """What a probe's length says: its TTL and its walk modulo 4."""
    return MAX_TTL * (round_ % _ROUNDS) + ttl


def probe_payload(number: int) -> bytes:
    """Payload of ``2 + number`` octets; the UDP checksum is the same for every number.

    The length enters the checksum twice (pseudo-header and header); the first word takes both out again.
    """
    length = _HEADER + 2 + number
    return struct.pack(">H", 0x8000 - 2 * length) + bytes(number)


@dataclass(frozen=True, slots=True)
class Answer:
    """One ICMP error about a UDP probe: who sent it, and the probe it quotes."""

    responder: str
    expired: bool
    destination: str
    source_port: int
    number: int


class Dissector:
    """Reads ICMP errors with scapy. ImportError when scapy is not installed."""

    def __init__(self) -> None:
        logging.getLogger("scapy").setLevel(logging.CRITICAL)
        from scapy.layers import inet, inet6

        self._inet, self._inet6 = inet, inet6
        self._port = struct.pack(">H", DESTINATION_PORT)

    def read(self, version: int, data: bytes, sender: str) -> Answer | None:
        """The answer in what a raw ICMP socket received; None when it is not about a probe of ours.

        version: 4 (data begins with the IPv4 header) or 6 (with the ICMPv6 header). Never raises: anybody may send
        anything.
        """
        if self._port not in data:  # most errors are about other traffic: cheap to tell
            return None
        try:
            return self._version4(data) if version == 4 else self._version6(data, sender)
        except Exception:  # scapy's dissectors raise whatever malformed input makes them raise
            return None

    def _version4(self, data: bytes) -> Answer | None:
        packet = self._inet.IP(data)
        icmp = packet.getlayer(self._inet.ICMP)
        quoted = packet.getlayer(self._inet.IPerror)
        if icmp is None or quoted is None or icmp.type not in (_UNREACHABLE[4], _EXPIRED[4]):
            return None
        return self._answer(packet.src, icmp.type == _EXPIRED[4], quoted)

    def _version6(self, data: bytes, sender: str) -> Answer | None:
        kinds = {_UNREACHABLE[6]: self._inet6.ICMPv6DestUnreach, _EXPIRED[6]: self._inet6.ICMPv6TimeExceeded}
        if data[0] not in kinds:
            return None
        quoted = kinds[data[0]](data).getlayer(self._inet6.IPerror6)
        return None if quoted is None else self._answer(sender, data[0] == _EXPIRED[6], quoted)

    def _answer(self, responder: str, expired: bool, quoted: Any) -> Answer | None:
        udp = quoted.getlayer(self._inet.UDPerror)
        if udp is None or udp.dport != DESTINATION_PORT or udp.len is None:
            return None
        return Answer(responder, expired, quoted.dst, udp.sport, udp.len - _HEADER - 2)


@dataclass(slots=True)
class Walk:
    """One flow's hops to one destination, nearest first."""

    destination: str
    flow: int
    round: int
    max_ttl: int
    timeout: float
    next_ttl: int = 1
    end: int = 0  # TTL at which the walk was answered for good; 0 while it was not
    reached: bool = False
    sent: dict[int, float] = field(default_factory=dict)  # TTL -> when, on the monotonic clock
    hops: dict[int, tuple[str, float]] = field(default_factory=dict)  # TTL -> responder, RTT in s

    def wants_probe(self) -> bool:
        """Whether there is a next hop to look for."""
        farthest = max(self.hops, default=0)
        return not self.end and self.next_ttl <= min(self.max_ttl, farthest + GAP)

    def sent_probe(self, now: float) -> None:
        """Take the next probe as sent; ``now`` in s on the monotonic clock."""
        self.sent[self.next_ttl] = now
        self.next_ttl += 1

    def take(self, answer: Answer, now: float) -> bool:
        """Take an answer; False when it is not one to a probe that is waited for."""
        ttl = answer.number - MAX_TTL * (self.round % _ROUNDS)
        sent = self.sent.get(ttl)
        known = answer.destination == self.destination and answer.source_port == SOURCE_PORT + self.flow
        if not known or sent is None or ttl in self.hops or now - sent > self.timeout:
            return False
        self.hops[ttl] = (answer.responder, now - sent)
        if not answer.expired:  # the destination's closed port, or a router that knows no way on
            self.end = min(self.end or ttl, ttl)
            if self.end == ttl:
                self.reached = answer.responder == self.destination
        return True

    def awaited(self) -> Iterator[float]:
        """When each unanswered probe that still matters was sent."""
        last = self.end or self.max_ttl
        return (when for ttl, when in self.sent.items() if ttl not in self.hops and ttl <= last)

    def give_up_at(self) -> float | None:
        """When the walk ends without another answer; None while there are probes to send."""
        return None if self.wants_probe() else max(self.awaited(), default=-self.timeout) + self.timeout

    def report(self) -> dict[str, Any]:
        """What standard output carries of it."""
        last = self.end or max(self.hops, default=0)
        hops = [self.hops.get(ttl) for ttl in range(1, last + 1)]
        return {"destination": self.destination, "flow": self.flow, "hops": hops, "reached": self.reached}


def _sender(destination: str, flow: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in destination else socket.AF_INET
    sender = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        if family == socket.AF_INET6:
            # Left alone, the kernel draws a flow label per socket, and routers may spread by it: ours is fixed.
            sender.setsockopt(socket.IPPROTO_IPV6, _IPV6_FLOWINFO_SEND, 1)
            sender.bind(("::", SOURCE_PORT + flow))
            sender.connect((destination, DESTINATION_PORT, SOURCE_PORT + flow, 0))
        else:
            sender.bind(("0.0.0.0", SOURCE_PORT + flow))
            sender.connect((destination, DESTINATION_PORT))
    except OSError:
        sender.close()
        raise
    sender.setblocking(False)
    return sender


def _send(sender: socket.socket, ttl: int, number: int) -> None:
    sender.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # an earlier probe's "port unreachable" is no error of ours
    if sender.family == socket.AF_INET6:
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, ttl)
    else:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
    sender.send(probe_payload(number))


def open_listeners(destinations: list[str]) -> dict[int, socket.socket]:
    """IP version -> raw ICMP socket, for the versions the destinations have. PermissionError without CAP_NET_RAW."""
    listeners: dict[int, socket.socket] = {}
    for version in sorted({6 if ":" in d else 4 for d in destinations}):
        family, protocol = (
            (socket.AF_INET, socket.IPPROTO_ICMP) if version == 4 else (socket.AF_INET6, socket.IPPROTO_ICMPV6)
        )
        listener = socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, protocol)
        wanted = (_UNREACHABLE[version], _EXPIRED[version])
        if version == 4:  # a set bit blocks its type
            mask = 0xFFFFFFFF & ~sum(1 << kind for kind in wanted)
            listener.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("=I", mask))
        else:
            words = [0xFFFFFFFF] * 8
            for kind in wanted:
                words[kind >> 5] &= ~(1 << (kind & 31))
            listener.setsockopt(socket.IPPROTO_ICMPV6, _ICMPV6_FILTER, struct.pack("=8I", *words))
        listeners[version] = listener
    return listeners


def drop_privileges() -> None:
    """Give up every capability, for good. OSError when the kernel refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)  # 0: this thread, the only one
    nothing = bytes(2 * 3 * 4)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.capset(header, nothing):
        raise OSError(ctypes.get_errno(), "giving up capabilities")


class Prober:
    """Walks every flow of every destination in turn, one walk at a time, at the plan's rate."""

    def __init__(
        self,
        plan: ProbePlan,
        listeners: dict[int, socket.socket],
        dissector: Dissector,
        tell: Callable[[dict[str, Any]], None],
    ) -> None:
        self._plan = plan
        self._dissector = dissector
        self._tell = tell
        self._listeners = {listener.fileno(): (version, listener) for version, listener in listeners.items()}
        # One socket per flow for good: its source address stays, and so does the hash the kernel draws for a socket,
        # which a veth hands on to routers in other namespaces of this host.
        self._senders: dict[tuple[str, int], socket.socket] = {}
        self._poll = select.poll()
        self._poll.register(sys.stdin.fileno(), _SO_ATTENTION)
        for fd in self._listeners:
            self._poll.register(fd, select.POLLIN)
        self._next_send = 0.0
        self.counts: Counter[str] = Counter()

    def run(self) -> None:
        """Probe until standard input ends."""
        round_ = 0
        while True:
            for flow in range(self._plan.flows):
                for destination in self._plan.destinations:
                    walk = Walk(destination.address, flow, round_, self._plan.max_ttl, self._plan.timeout)
                    if not self._walk(walk):
                        return
                    self._tell({**walk.report(), "counts": dict(self.counts)})
            round_ += 1

    def _walk(self, walk: Walk) -> bool:
        """Do one walk; False when standard input has ended."""
        while True:
            now = time.monotonic()
            give_up = walk.give_up_at()
            if give_up is not None and now >= give_up:
                self.counts["unanswered"] += sum(1 for _ in walk.awaited())
                return True
            if give_up is None and now >= self._next_send:
                self._next_send = now + 1.0 / self._plan.rate  # never faster, also after a pause
                if not self._send(walk, now):
                    return True
            elif not self._listen(walk, self._next_send if give_up is None else give_up):
                return False

    def _send(self, walk: Walk, now: float) -> bool:
        """Send the walk's next probe; False when there is no route, or another program has the port."""
        key = walk.destination, walk.flow
        try:
            if key not in self._senders:
                self._senders[key] = _sender(*key)
            _send(self._senders[key], walk.next_ttl, probe_number(walk.next_ttl, walk.round))
        except OSError:
            self.counts["send_failed"] += 1
            if key in self._senders:
                self._senders.pop(key).close()
            return False
        walk.sent_probe(now)
        self.counts["sent"] += 1
        return True

    def _listen(self, walk: Walk, until: float) -> bool:
        """Take answers until one came or it is ``until``; False when standard input has ended."""
        wait_ms = max(0.0, until - time.monotonic()) * 1e3
        for fd, _ in self._poll.poll(int(wait_ms) + 1):
            if fd not in self._listeners:
                return False
            version, listener = self._listeners[fd]
            try:
                data, sender = listener.recvfrom(2048)
            except OSError:
                continue
            now = time.monotonic()
            answer = self._dissector.read(version, data, sender[0].partition("%")[0])
            if answer is None:
                self.counts["foreign"] += 1
            elif walk.take(answer, now):
                self.counts["answered"] += 1
            else:
                self.counts["late"] += 1
        return True


def main() -> int:
    """Read the plan, open the sockets, give up all privilege, probe."""

    def tell(line: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(line, separators=(",", ":")) + "\n")
        sys.stdout.flush()

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the agent's, who then closes our input
    try:
        plan = ProbePlan.from_json(sys.stdin.readline())
        listeners = open_listeners([d.address for d in plan.destinations])
        drop_privileges()
        with contextlib.suppress(OSError):  # a unit's system call filter may forbid it
            os.nice(10)
        dissector = Dissector()
    except ValueError as error:
        tell({"failed": str(error)})
    except PermissionError:
        tell({"failed": "path probing needs CAP_NET_RAW to receive ICMP: grant it to the agent or empty [probe]"})
    except ImportError:
        tell({"failed": "path probing needs scapy: apt-get install mvps-probe, or pip install mvps[probe]"})
    except OSError as error:
        tell({"failed": f"path probing: {error}"})
    else:
        try:
            Prober(plan, listeners, dissector, tell).run()
        except BrokenPipeError:  # the agent is gone
            os._exit(0)
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())

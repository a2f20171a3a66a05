# SPDX-License-Identifier: Apache-2.0
"""The broker's hand on the limiter: it says which connections have proven themselves. Needs no capability.

A proven connection has a budget of its own, which no stranger can use up. The broker proves a peer after the first seal
it verified on a stream, and forgets it when its last stream ends.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
from collections import Counter
from pathlib import Path
from typing import Final, TypeAlias
from urllib.parse import unquote

from mvps.limiter import layout
from mvps.probes import libbpf
from mvps.probes.libbpf import BpfError, BpfMap

_LOOK_EVERY_S: Final = 1.0

_Peer: TypeAlias = tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]


def parse_peer(peer: str) -> _Peer | None:
    """Address and port of gRPC's ``context.peer()``, such as ``ipv4:192.0.2.1:5`` or ``ipv6:%5B2001:db8::1%5D:5``.

    None for what is no TCP peer (``unix:``).
    """
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return None
    host, _, port = unquote(rest).rpartition(":")
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
        number = int(port)
    except ValueError:
        return None
    if not 0 < number < 1 << 16:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address, number


class Flows:
    """The proven peers of one broker.

    folder: where the limiter is pinned. There need not be one yet, and it may be removed or come back at any time: the
    peers are kept here and written again.

    ``refused``: peers that could not be written, by cause: full (the map), or the error's name.
    ``trouble``: why the limiter cannot be used right now, "" when it can.
    """

    def __init__(self, folder: Path) -> None:
        self.folder: Final = folder
        self._path = folder / layout.SCHEMA / "flows"
        self._map: BpfMap | None = None
        self._pin: tuple[int, int] | None = None
        self._peers: dict[_Peer, int] = {}
        self._streams: dict[_Peer, set[int]] = {}
        self.refused: Counter[str] = Counter()
        self.trouble = ""
        self.refresh()

    def __len__(self) -> int:
        """Proven peers."""
        return len(self._peers)

    def prove(self, peer: str, stream: int, vantages: int = 1) -> None:
        """This stream of the peer has shown a seal that holds; ``vantages`` share the connection. Idempotent."""
        parsed = parse_peer(peer)
        if parsed is None:
            return
        self._streams.setdefault(parsed, set()).add(stream)
        if parsed not in self._peers:
            self._peers[parsed] = vantages
            self._write(parsed)

    def forget(self, peer: str, stream: int) -> None:
        """This stream has ended, proven or not; with its last proven one the peer is a stranger again. Idempotent."""
        parsed = parse_peer(peer)
        streams = self._streams.get(parsed) if parsed is not None else None
        if parsed is None or streams is None:
            return
        streams.discard(stream)
        if streams:
            return
        del self._streams[parsed], self._peers[parsed]
        if self._map is not None:
            try:
                self._map.remove(layout.flow_key(*parsed))
            except BpfError as error:
                self._refuse(error)

    def refresh(self) -> None:
        """Find the limiter that is installed now. In one that is new to this broker, its flows are the only ones."""
        try:
            status = os.stat(self._path)
            pin = (status.st_dev, status.st_ino)
            if pin == self._pin:
                return
            fresh = BpfMap(libbpf.open_pin(self._path))
        except FileNotFoundError:
            self._lost(f"no limiter in {self._path.parent}: `mvps broker attach` installs it")
            return
        except PermissionError:
            self._lost(f"may not write {self._path}: run the broker with the group of that file")
            return
        except OSError as error:
            self._lost(f"cannot use {self._path}: {error}")
            return
        self._lost("")
        self._map, self._pin = fresh, pin
        # What a broker that died has left, and those who took its connections' addresses since.
        for key in fresh.all_keys():
            fresh.remove(key)
        for parsed in self._peers:
            self._write(parsed)

    async def run(self) -> None:
        """Follow a limiter that is installed, removed or replaced, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            self.refresh()

    def close(self) -> None:
        """Forget all. Idempotent."""
        if self._map is not None:
            for parsed in self._peers:
                try:
                    self._map.remove(layout.flow_key(*parsed))
                except BpfError as error:
                    self._refuse(error)
        self._peers.clear()
        self._streams.clear()
        self._lost("")

    def _lost(self, trouble: str) -> None:
        if self._map is not None:
            self._map.close()
        self._map = self._pin = None
        self.trouble = trouble

    def _write(self, parsed: _Peer) -> None:
        if self._map is None:
            return
        try:
            # One that is there keeps what it has spent.
            self._map.put(layout.flow_key(*parsed), layout.new_flow(self._peers[parsed]), only_new=True)
        except BpfError as error:
            self._refuse(error)

    def _refuse(self, error: BpfError) -> None:
        cause = "full" if error.errno == errno.E2BIG else errno.errorcode.get(error.errno or 0, "unknown").lower()
        self.refused[cause] += 1

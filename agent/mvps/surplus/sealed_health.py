# SPDX-License-Identifier: Apache-2.0
"""How a tenant's closed minutes travel from a host to its broker: inside the host's sealed snapshots (ours).

A snapshot may carry the extension ``NAME``: lines of ``health.v1`` (:mod:`mvps.surplus.packets`), canonical, one a
minute and tenant, parted by newlines, oldest first. So they are sealed, spooled and kept as evidence like everything
else a host says, and no decision about a snapshot depends on them. What does not fit into one snapshot waits for the
next one.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Final

from mvps.surplus.packets import HealthMinute, PacketError, parse

NAME: Final = "mvps.surplus/health"
# An extension may have 16 KiB; a line has some 500 bytes.
MAX_BYTES: Final = 12 * 1024
MAX_LINES: Final = 32


def pack(waiting: deque[bytes]) -> bytes:
    """As many waiting lines as one snapshot carries, which are taken off; b"" where none waits."""
    taken: list[bytes] = []
    size = 0
    while waiting and len(taken) < MAX_LINES and size + len(waiting[0]) + 1 <= MAX_BYTES:
        size += len(waiting[0]) + 1
        taken.append(waiting.popleft())
    return b"\n".join(taken)


def unpack(data: bytes) -> tuple[list[HealthMinute], Counter[str]]:
    """Minutes of one extension, and what of it did not count, by cause: "oversize", "malformed".

    A line that is no health.v1 takes none of the others with it.
    """
    refused: Counter[str] = Counter()
    if len(data) > MAX_BYTES:
        refused["oversize"] += 1
        return [], refused
    lines = data.split(b"\n", MAX_LINES)
    if len(lines) > MAX_LINES:
        refused["oversize"] += 1
        lines = lines[:MAX_LINES]
    found = []
    for line in lines:
        try:
            found.append(parse(line, HealthMinute))
        except PacketError:
            refused["malformed"] += 1
    return found, refused

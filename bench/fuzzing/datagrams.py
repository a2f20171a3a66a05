# SPDX-License-Identifier: Apache-2.0
"""Datagrams of the companion drafts."""

from __future__ import annotations

from bench.fuzzing.target import (
    NOW_S,
    Target,
    require,
)
from mvps.interop.codec import COHE_PORT, MBND_PORT, NO_BFD, Bundle, BundleHeader, Coherence, Envelope, InteropError
from mvps.interop.codec import decode as decode_datagram


class Datagrams(Target):
    """Datagrams of the companion drafts; the first octet chooses the port."""

    share = 0.07
    max_size = 2048

    def __init__(self) -> None:
        super().__init__()
        header = BundleHeader(7, NOW_S, 2, 3, 1, 1.5)
        bundle = Bundle(header, (bytes(32),) * 3, Envelope(2, b"operator-1234567", bytes(32), b"rest")).encode()
        message = Coherence(7, -3, 1.0, 0.5, 0.25, NO_BFD).encode()
        self.seeds = [b"\1" + message, b"\0" + bundle, b"\1" + bytes(24)]
        empty = Bundle(BundleHeader(7, 1, 2, 2000, 1, 1.5), (bytes(32),) * 2000, Envelope(2, b"x" * 16, bytes(32)))
        self.largest = [b"\0" + empty.encode(), b"\0" + bytes(1 << 20)]

    def run(self, data: bytes) -> None:
        port = COHE_PORT if data[:1] and data[0] & 1 else MBND_PORT
        try:
            message = decode_datagram(port, data[1:])
        except InteropError:
            return
        if message is not None:
            require(message.encode() == data[1:], "a datagram that is written in another way")
            require(
                isinstance(message.doubts if isinstance(message, Coherence) else message.header.doubts, tuple), "doubts"
            )
            self.taken_in += 1

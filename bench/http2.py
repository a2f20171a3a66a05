# SPDX-License-Identifier: Apache-2.0
"""A gRPC client of a few microseconds a message: one bidirectional stream on one connection, frames written by hand.

For measurements of a server with thousands of connections on a machine of two cores, where a real client (100 us of
CPU a message) would be what is measured. It knows what such a stream needs and nothing else: no TLS, no compression, no
headers beyond those, and it relies on the server's replenishing of windows for what it sends (RFC 9113; the gRPC wire
format is the length-prefixed message of gRPC over HTTP/2).
"""

from __future__ import annotations

import socket
import struct

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0x0, 0x1, 0x3, 0x4, 0x6, 0x7, 0x8
_ACK, _END_HEADERS, _PADDED = 0x1, 0x4, 0x8
_FRAME = struct.Struct(">HBBBI")  # length in two parts, type, flags, stream
_MESSAGE = struct.Struct(">BI")  # compressed, length
_INITIAL_WINDOW_SIZE = 4
_LARGEST_WINDOW = (1 << 31) - 1
_DEFAULT_WINDOW = (1 << 16) - 1
_MAX_FRAME = 1 << 14
_READ = 1 << 16


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return _FRAME.pack(len(payload) >> 8, len(payload) & 0xFF, kind, flags, stream) + payload


def _literal(name: str, value: str) -> bytes:
    """A header field as a literal without indexing, shorter than 127 bytes each (RFC 7541 sec. 6.2.2)."""
    return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


class Stream:
    """One open call. ``fileno()`` for a selector; ``receive()`` when it is readable."""

    def __init__(self, address: str, method: str) -> None:
        host, port = address.rsplit(":", 1)
        self._socket = socket.create_connection((host, int(port)))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._frames = bytearray()
        self._messages = bytearray()
        headers = {
            ":method": "POST",
            ":scheme": "http",
            ":path": method,
            ":authority": address,
            "content-type": "application/grpc",
            "te": "trailers",
        }
        self._socket.sendall(
            _PREFACE
            + _frame(_SETTINGS, 0, 0, struct.pack(">HI", _INITIAL_WINDOW_SIZE, _LARGEST_WINDOW))
            + _frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", _LARGEST_WINDOW - _DEFAULT_WINDOW))
            + _frame(_HEADERS, _END_HEADERS, 1, b"".join(_literal(*field) for field in headers.items()))
        )

    def fileno(self) -> int:
        """Of its socket."""
        return self._socket.fileno()

    def send(self, message: bytes) -> None:
        """Write one message. It has to fit the window and the socket's buffer, or this waits."""
        if len(message) + _MESSAGE.size > _MAX_FRAME:
            raise ValueError(f"a message of {len(message)} bytes does not fit one frame")
        self._socket.sendall(_frame(_DATA, 0, 1, _MESSAGE.pack(0, len(message)) + message))

    def receive(self) -> list[bytes]:
        """Whole messages that have come. ConnectionError when the server ends the stream or the connection."""
        read = self._socket.recv(_READ)
        if not read:
            raise ConnectionError("the server closed the connection")
        frames = self._frames
        frames += read
        at = 0
        while len(frames) - at >= _FRAME.size:
            high, low, kind, flags, _ = _FRAME.unpack_from(frames, at)
            end = at + _FRAME.size + (high << 8 | low)
            if len(frames) < end:
                break
            payload = bytes(frames[at + _FRAME.size : end])
            at = end
            if kind == _DATA:
                if flags & _PADDED:
                    raise ConnectionError("the server pads its frames, which this client does not read")
                self._messages += payload
            elif kind in (_SETTINGS, _PING) and not flags & _ACK:
                self._socket.sendall(_frame(kind, _ACK, 0, payload if kind == _PING else b""))
            elif kind in (_RST_STREAM, _GOAWAY) or (kind == _HEADERS and flags & 0x1):
                raise ConnectionError(f"the server ended the stream: frame of type {kind}, {payload!r}")
        del frames[:at]
        return self._whole()

    def _whole(self) -> list[bytes]:
        found, at, messages = [], 0, self._messages
        while len(messages) - at >= _MESSAGE.size:
            _, length = _MESSAGE.unpack_from(messages, at)
            end = at + _MESSAGE.size + length
            if len(messages) < end:
                break
            found.append(bytes(messages[at + _MESSAGE.size : end]))
            at = end
        del messages[:at]
        return found

    def close(self) -> None:
        """End the connection."""
        self._socket.close()

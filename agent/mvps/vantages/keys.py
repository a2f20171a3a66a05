# SPDX-License-Identifier: Apache-2.0
"""Keys of named things: how an object or fingerprint that user space makes up becomes a 64-bit number."""

from __future__ import annotations

import hashlib


def stable_key(*parts: object) -> int:
    """64-bit key of a tuple of plain values, equal across restarts; never 0."""
    text = "\0".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") or 1

# SPDX-License-Identifier: Apache-2.0
"""The oldest kernel that our programs were tried on. Hooks are found by trying; this is about what they mean."""

from __future__ import annotations

import re

# Debian 12's. Older kernels have most of the hooks, and nobody has compared what they say with anything.
KERNEL_FLOOR = (6, 1)


def too_old(release: str) -> str:
    """Why a kernel is refused, with advice; "" for one that is not, or whose release does not begin with numbers."""
    numbers = re.match(r"(\d+)\.(\d+)", release)
    if numbers is None or (int(numbers[1]), int(numbers[2])) >= KERNEL_FLOOR:
        return ""
    floor = ".".join(map(str, KERNEL_FLOOR))
    return f"kernel {release} is older than {floor}, whose tracepoints nobody has checked: boot {floor} or newer"

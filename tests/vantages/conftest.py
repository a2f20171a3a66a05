# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def disk_path() -> Iterator[Path]:
    """A folder on a disk. pytest's ``tmp_path`` lies in /tmp, which is memory on Debian 13: no block I/O there."""
    with tempfile.TemporaryDirectory(prefix="mvps-test-", dir="/var/tmp") as folder:
        yield Path(folder)

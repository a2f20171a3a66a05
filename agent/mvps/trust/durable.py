# SPDX-License-Identifier: Apache-2.0
"""Files that survive a crash whole, and files that have one owner."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def replace(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write a file so that after a crash either the old or the new content is there. OSError if the disk refuses."""
    fresh = path.with_name(path.name + ".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_at(descriptor: int, data: bytes, offset: int) -> None:
    """Write all of ``data`` at an offset, however the kernel cuts it. Not on disk yet. OSError if the disk refuses."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view = view[written:]
        offset += written


def claim(path: Path) -> int:
    """Own ``path`` until the returned descriptor is closed.

    BlockingIOError if another process owns it, another OSError if the lock cannot be made.
    """
    # The lock is a file of its own, since the owned one may be replaced by renaming.
    lock_path = path.with_name(path.name + ".lock")
    lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    return lock

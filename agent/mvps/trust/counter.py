# SPDX-License-Identifier: Apache-2.0
"""The counter of an agent's seals: generation << 32 | sequence, never reused, also not after kill -9.

The generation is claimed and synced to disk once at start, the sequence lives in memory: nothing waits for
the disk on the tick path. Gaps are legal. A generation is at least the start time in seconds (ours), so a
lost state file, a restored backup or a rolled-back virtual machine does not use an old one again unless its
clock went back as well.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from mvps.trust.durable import claim, replace
from mvps.trust.seal import Lane

_SEQUENCE_BITS: Final = 32
_LARGEST: Final = 2**32 - 1
_CONTENT: Final = re.compile(rb"mvps-counter-v1 ([0-9]{1,10})\n")


class CounterError(Exception):
    """No generation can be claimed. The message says what to do."""


class Counter:
    """Counters of one agent process. Holds a lock on the state file until :meth:`close`.

    path: state file, e.g. ``/var/lib/mvps/counter``; its directory must exist.
    clock: seconds since the Unix epoch.
    Raises CounterError when another process holds the file, or it is damaged, or the disk refuses.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        try:
            self._lock = claim(path)
        except BlockingIOError:
            raise CounterError(
                f"another agent uses {path}: stop it, or give this one its own state directory"
            ) from None
        except OSError as error:
            raise CounterError(f"cannot open {path}.lock: {error.strerror}; is the state directory there?") from None
        try:
            generation = max(_stored(path) + 1, int(clock()))
            if generation > _LARGEST:
                raise CounterError(f"{path} holds the last generation: give this host a new vantage id")
            replace(path, b"mvps-counter-v1 %d\n" % generation)
        except OSError as error:
            os.close(self._lock)
            raise CounterError(f"cannot write {path}: {error.strerror}") from None
        except CounterError:
            os.close(self._lock)
            raise
        self.generation: Final = generation
        self._sequence = dict.fromkeys(Lane, 0)

    def next(self, lane: Lane) -> int:
        """The next counter of a lane, strictly above every earlier one."""
        sequence = self._sequence[lane]
        if sequence >= _LARGEST:
            raise CounterError("all sequence numbers of this generation are used: restart the agent")
        self._sequence[lane] = sequence + 1
        return self.generation << _SEQUENCE_BITS | sequence

    def close(self) -> None:
        """Let go of the state file."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def generation_of(counter: int) -> int:
    """Generation part of a counter."""
    return counter >> _SEQUENCE_BITS


def _stored(path: Path) -> int:
    """Generation in the state file; 0 before the first start."""
    try:
        with path.open("rb") as file:
            content = file.read(64)
    except FileNotFoundError:
        return 0
    match = _CONTENT.fullmatch(content)
    if match is None:
        raise CounterError(
            f"{path} is damaged: move it away and start again. The next generation is then taken "
            "from the clock, so check first that the clock is right"
        )
    return int(match[1])

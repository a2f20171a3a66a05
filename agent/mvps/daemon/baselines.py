# SPDX-License-Identifier: Apache-2.0
"""Baselines on disk, so that a restart does not calibrate anew.

A baseline is valid for one purpose: a surface, its vantages, the tick, the scope and the settings it was
learned with. The file's name carries a digest of the purpose, so baselines of different purposes lie side
by side and none is ever used for another. Writing happens in a thread of its own: the tick thread hands
over a reference and goes on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mvps.coherence.baseline import Baseline
from mvps.daemon import log

# Purposes remembered per surface; trying other settings must not fill the state directory.
KEPT = 8

_log = log.logger("baselines")


@dataclass(frozen=True, slots=True)
class Purpose:
    """What a baseline is valid for.

    settings: what calibration depends on, as plain values, for example calibration_ticks and the scope.
    """

    surface: str
    vantages: tuple[str, ...]
    tick_ns: int
    settings: Mapping[str, str | int | float]

    @property
    def file_name(self) -> str:
        """``baseline-<surface>-<digest>.json``."""
        text = json.dumps(asdict(self), sort_keys=True)
        return f"baseline-{self.surface}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"


def load(directory: Path, purpose: Purpose) -> Baseline | None:
    """The stored baseline for exactly this purpose, or None; a damaged one is logged and left in place."""
    path = directory / purpose.file_name
    try:
        baseline = Baseline.from_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.event(_log, logging.WARNING, "baseline_unusable", path=path, error=error, effect="calibrating anew")
        return None
    log.event(_log, logging.INFO, "baseline_loaded", surface=purpose.surface, baseline=baseline.baseline_id)
    return baseline


def save(directory: Path, purpose: Purpose, baseline: Baseline) -> None:
    """Replace the stored baseline of this purpose; after a crash either the old or the new one is there."""
    path = directory / purpose.file_name
    fresh = path.with_suffix(".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(baseline.to_json())
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    others = sorted(directory.glob(f"baseline-{purpose.surface}-*.json"), key=lambda p: p.stat().st_mtime)
    for stale in others[:-KEPT]:
        with contextlib.suppress(OSError):
            stale.unlink()


class Saver:
    """Saves the newest baseline of each surface in the background.

    failures: saves that did not reach the disk; the next change tries again.
    """

    def __init__(self, directory: Path, purposes: Sequence[Purpose]):
        self._directory = directory
        self._purposes = {p.surface: p for p in purposes}
        self._pending: dict[str, Baseline] = {}
        self._changed = threading.Condition()
        self._closing = False
        self.failures = 0
        self._thread = threading.Thread(target=self._work, name="mvps-baselines", daemon=True)
        self._thread.start()

    def put(self, surface: str, baseline: Baseline) -> None:
        """Hand over a baseline; never waits for the disk."""
        with self._changed:
            self._pending[surface] = baseline
            self._changed.notify()

    def close(self, timeout: float = 5.0) -> None:
        """Save what is pending and end."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._closing)
                if not self._pending:
                    return
                surface, baseline = self._pending.popitem()
            try:
                save(self._directory, self._purposes[surface], baseline)
            except OSError as error:
                self.failures += 1
                log.event(
                    _log, logging.ERROR, "baseline_not_saved", surface=surface, error=error,
                    effect="the next start calibrates anew unless a later save works",
                )  # fmt: skip
            else:
                log.event(_log, logging.INFO, "baseline_saved", surface=surface, baseline=baseline.baseline_id)

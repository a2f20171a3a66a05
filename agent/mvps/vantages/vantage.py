# SPDX-License-Identifier: Apache-2.0
"""What every vantage is: one running signal that turns a tick's counters into observations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

from mvps.coherence.observation import Observation
from mvps.vantages.cells import Cells


class Vantage(ABC):
    """A loaded and attached signal with its witness."""

    cells: Cells

    @abstractmethod
    def read(self) -> Sequence[Observation]:
        """What was seen since the last call. OSError when a witness has gone away."""

    def losses(self) -> dict[str, int]:
        """Totals since attach of what was not fully counted, by cause."""
        return self.cells.losses()

    def object_names(self, keys: Iterable[int]) -> dict[int, str]:
        """Names of those object keys only this vantage knows."""
        return {}

    @abstractmethod
    def close(self) -> None:
        """Detach and free."""

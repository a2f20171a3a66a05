# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from mvps.coupling.service_time import bau_limit, c1_ai, service_time


def test_a_slower_network_alone_does_not_move_c1_ai() -> None:
    rng = np.random.default_rng(0)
    work = rng.gamma(20.0, 10.0, 500)  # ms
    limit = bau_limit(service_time(work + 2.0, np.full(500, 2.0)))
    far = np.full(500, 300.0)
    assert c1_ai(service_time(work + 300.0, far), limit) == pytest.approx(0.99, abs=1e-9)
    # With the latency as the client sees it, it would be 0: the surfaces would correlate without any coupling.
    assert c1_ai(service_time(work + 300.0, far, 0.0), limit) < 0.05
    assert c1_ai(service_time(1.5 * work + 2.0, np.full(500, 2.0)), limit) < 0.95


def test_an_answer_before_its_round_trip_is_a_violation() -> None:
    service = service_time(np.array([10.0, 10.0, np.nan]), np.array([4.0, 12.0, 1.0]))
    assert service[:2].tolist() == [6.0, -2.0]
    assert c1_ai(service, 100.0) == 0.5
    assert c1_ai(np.array([np.nan]), 100.0) is None


def test_refusals() -> None:
    with pytest.raises(ValueError, match="100 timed answers"):
        bau_limit(np.ones(99))
    with pytest.raises(ValueError, match="round trips"):
        service_time(np.ones(1), np.ones(1), -1.0)

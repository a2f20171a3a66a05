# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
from pydantic import ValidationError
from wire_samples import settings

from mvps.broker.epoch_watch import EpochWatch
from mvps.broker.settings import BrokerSettings
from mvps.trust.keys import KeySourceError


@pytest.mark.parametrize(
    "wrong",
    [
        {"keys": {}},
        {"unknown": 1},
        {"retention_s": 0},
        {"max_streams": 0},
        {"live_window_s": -1},
        {"operators": ["alice"]},
        {"listen": "unix:/run/broker.sock", "operator_socket": "/run/broker.sock"},
    ],
)
def test_wrong_settings_are_refused(tmp_path: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        settings(tmp_path, **wrong)


def test_an_exposed_key_stops_the_start(tmp_path: Path) -> None:
    good, site = settings(tmp_path)
    site.broker_key.chmod(0o644)
    with pytest.raises(KeySourceError, match="chmod 600"):
        EpochWatch(good)


def test_backfill_reaches_back_as_far_as_history() -> None:
    window = BrokerSettings(retention_s=7200).window()
    assert window.backfill_past_ns == 7200 * 10**9

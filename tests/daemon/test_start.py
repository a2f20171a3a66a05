# SPDX-License-Identifier: Apache-2.0
"""What a start makes of the settings for spool, TLS and the local sockets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from authority import Authority

from mvps.daemon import start
from mvps.daemon.config import Config


def config(**sections: dict[str, Any]) -> Config:
    return Config.model_validate({"agent": {"vantage_id": "host-1"}} | sections)


def test_the_spool_lies_in_the_state_directory_unless_it_is_told_otherwise(tmp_path: Path) -> None:
    for settings, place in (({}, tmp_path / "spool"), ({"path": str(tmp_path / "other")}, tmp_path / "other")):
        spool = start._spool(config(spool=settings), tmp_path)
        assert spool is not None
        assert spool.path == place / "host-1"
        assert spool.path.stat().st_mode & 0o777 == 0o700
        spool.close()
    assert start._spool(config(spool={"max_mib": 0}), tmp_path) is None


def test_a_spool_that_cannot_be_had_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("a file")
    with pytest.raises(start.StartError, match="create it for this user, or set another"):
        start._spool(config(), tmp_path)
    with pytest.raises(start.StartError, match=r"spool\.path .*No such file"):
        start._spool(config(spool={"path": str(tmp_path / "none/spool")}), tmp_path)
    first = start._spool(config(spool={"path": str(tmp_path / "one")}), tmp_path)
    with pytest.raises(start.StartError, match="another agent uses"):
        start._spool(config(spool={"path": str(tmp_path / "one")}), tmp_path)
    assert first is not None
    first.close()


@pytest.mark.parametrize(
    ("tick_ms", "rate", "expected"), [(1000, 0.0, 3.0), (50, 0.0, 60.0), (60_000, 0.0, 0.05), (50, 3.0, 3.0)]
)
def test_the_pace_of_a_backlog_follows_the_tick(tick_ms: int, rate: float, expected: float) -> None:
    settings = Config.model_validate({"agent": {"tick_ms": tick_ms}, "spool": {"rate": rate}})
    assert settings.late_rate == expected


def test_tls_is_looked_at_before_anything_starts(tmp_path: Path) -> None:
    ca = Authority(tmp_path / "ca")
    cert, key = ca.issue("host")
    assert start._credentials(config()) is None
    whole = {"tls_ca": str(ca.path), "tls_cert": str(cert), "tls_key": str(key)}
    make = start._credentials(config(broker=whole))
    assert make is not None
    assert make() is not make()  # read at every connect
    key.chmod(0o644)
    with pytest.raises(start.StartError, match=r"broker\.tls: .*chmod 600"):
        start._credentials(config(broker=whole))
    for half in ({"tls_cert": str(cert)}, {"tls_key": str(key), "tls_cert": str(cert)}):
        with pytest.raises(ValueError, match="tls_"):
            config(broker=half)


def test_the_operators_socket_is_served_beside_the_other_one(
    tmp_path: Path, vantages: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    vantages.surfaces = lambda: {"kernel": ("mm", "blk"), "dataplane": ("path",)}
    monkeypatch.setattr(start, "attach", lambda _: vantages)
    sockets = {"socket": tmp_path / "agent.sock", "operator_socket": tmp_path / "operator.sock"}
    settings = config(
        agent={"vantage_id": "host-1", "state_dir": str(tmp_path)},
        metrics={"address": ""},
        local={name: str(path) for name, path in sockets.items()},
    )
    started = start.start(settings)
    assert [path.stat().st_mode & 0o777 for path in sockets.values()] == [0o660, 0o600]
    started.agent.stop()
    started.run()
    assert not any(path.exists() for path in sockets.values())
    sockets["operator_socket"].write_text("in the way")
    with pytest.raises(start.StartError, match="is no socket"):
        start.start(settings)
    assert not sockets["socket"].exists()


def test_a_kernel_below_the_floor_is_refused_before_anything_is_attached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.release", lambda: "5.15.0-100-generic")
    monkeypatch.setattr(start.VantageSet, "open", lambda *_, **__: pytest.fail("attached"))
    with pytest.raises(start.StartError, match=r"5\.15\.0-100-generic is older than 6\.1") as caught:
        start.attach(config())
    assert caught.value.cause is start.Cause.PRIVILEGE

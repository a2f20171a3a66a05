# SPDX-License-Identifier: Apache-2.0
"""Each check against a made-up host, and all of them against this one."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest
from authority import Authority

from mvps.broker.process import EmbeddedBroker
from mvps.broker.settings import BrokerSettings
from mvps.cli import doctor
from mvps.daemon.config import Config
from mvps.trust.keys import Kind, generate_key
from mvps.trust.solo import make_site


def _put(root: Path, path: str, content: bytes) -> Path:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    return root


@pytest.mark.parametrize(
    ("release", "level"), [("6.18.44-x", "ok"), ("6.1.0-9-amd64", "ok"), ("5.15.0", "fail"), ("odd", "ok")]
)
def test_kernel(release: str, level: str) -> None:
    assert doctor.kernel(release).level == level


def test_btf(tmp_path: Path) -> None:
    lacking = doctor.btf(tmp_path, "6.1.0-9-amd64")
    assert lacking.level == "fail"
    assert "CONFIG_DEBUG_INFO_BTF" in lacking.advice
    assert "python3-bpfcc" in lacking.advice
    _put(tmp_path, "usr/lib/python3/dist-packages/bcc/__init__.py", b"")
    assert "linux-headers-6.1.0-9-amd64" in doctor.btf(tmp_path, "6.1.0-9-amd64").advice
    stated = b'#define UTS_RELEASE "6.1.0-9-amd64"\n'
    _put(tmp_path, "lib/modules/6.1.0-9-amd64/build/include/generated/utsrelease.h", stated)
    assert doctor.btf(tmp_path, "6.1.0-9-amd64").level == "warn"
    _put(tmp_path, "sys/kernel/btf/vmlinux", b"not btf")
    assert doctor.btf(tmp_path, "6.1.0-9-amd64").level == "fail"
    _put(tmp_path, "sys/kernel/btf/vmlinux", b"\x9f\xeb\x01\x00")
    assert doctor.btf(tmp_path, "6.1.0-9-amd64").level == "ok"


def test_hooks_are_looked_up_one_by_one_in_the_kernels_types(tmp_path: Path) -> None:
    assert "btf" in doctor.hooks(tmp_path).advice
    assert doctor.hooks(tmp_path).level == "warn"
    here = Path("/sys/kernel/btf/vmlinux")
    if not here.exists():
        pytest.skip("this kernel has no BTF")
    types = here.read_bytes()
    _put(tmp_path, "sys/kernel/btf/vmlinux", types)
    assert doctor.hooks(tmp_path).level == "ok"
    assert int(doctor.hooks(tmp_path).detail.split()[0]) >= 20
    _put(tmp_path, "sys/kernel/btf/vmlinux", types.replace(b"btf_trace_tcp_probe\0", b"btf_trace_tcp_prob_\0"))
    finding = doctor.hooks(tmp_path)
    assert (finding.level, finding.detail) == ("warn", "this kernel lacks tcp_probe (path), tcp_probe (sock)")


def test_jit_and_statistics(tmp_path: Path) -> None:
    assert (doctor.jit(tmp_path).level, doctor.statistics(tmp_path).level) == ("ok", "ok")
    _put(tmp_path, "proc/sys/net/core/bpf_jit_enable", b"0\n")
    _put(tmp_path, "proc/sys/kernel/bpf_stats_enabled", b"1\n")
    assert "bpf_jit_enable=1" in doctor.jit(tmp_path).advice
    assert "bpf_stats_enabled=0" in doctor.statistics(tmp_path).advice
    _put(tmp_path, "proc/sys/net/core/bpf_jit_enable", b"2\n")
    _put(tmp_path, "proc/sys/kernel/bpf_stats_enabled", b"0\n")
    assert (doctor.jit(tmp_path).level, doctor.statistics(tmp_path).level) == ("ok", "ok")


def test_spool_has_room_or_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Config.model_validate({"spool": {"path": str(tmp_path / "spool"), "max_mib": 100}})
    free = 200
    monkeypatch.setattr(
        "shutil.disk_usage",
        lambda _: type("Usage", (), {"free": free << 20}),
    )
    assert doctor.spool(settings).detail == f"0 of at most 100 MiB at {tmp_path / 'spool'}"
    free = 80
    assert "may grow by 100" in doctor.spool(settings).detail
    (tmp_path / "spool").mkdir()
    with (tmp_path / "spool/segment").open("wb") as file:
        file.truncate(30 << 20)
    assert doctor.spool(settings).level == "ok"
    assert doctor.spool(Config.model_validate({"spool": {"max_mib": 0}})).level == "warn"


@pytest.mark.parametrize(
    ("effective", "missing"),
    [
        (1 << 39 | 1 << 38 | 1 << 12, ""),
        (1 << 21 | 1 << 12, ""),
        (1 << 39 | 1 << 12, "CAP_PERFMON"),
        (1 << 39 | 1 << 38, "CAP_NET_ADMIN"),
        (0, "CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN"),
    ],
)
def test_capabilities(tmp_path: Path, effective: int, missing: str) -> None:
    _put(tmp_path, "proc/self/status", f"Name:\tx\nCapPrm:\t0\nCapEff:\t{effective:016x}\n".encode())
    finding = doctor.capabilities(tmp_path)
    assert finding.level == ("fail" if missing else "ok")
    if missing:
        assert finding.detail.endswith(f"lacks {missing}")


def test_lockdown(tmp_path: Path) -> None:
    assert doctor.lockdown(tmp_path).level == "ok"
    _put(tmp_path, "sys/kernel/security/lockdown", b"none [integrity] confidentiality\n")
    assert doctor.lockdown(tmp_path).level == "ok"
    _put(tmp_path, "sys/kernel/security/lockdown", b"none integrity [confidentiality]\n")
    assert doctor.lockdown(tmp_path).level == "fail"


def test_psi_and_cgroups(tmp_path: Path) -> None:
    assert "{cpu,io,memory}" in doctor.psi(tmp_path).detail
    for name in ("cpu", "io", "memory"):
        _put(tmp_path, f"proc/pressure/{name}", b"")
    assert doctor.psi(tmp_path).level == "ok"
    assert doctor.cgroups(tmp_path).level == "fail"
    _put(tmp_path, "sys/fs/cgroup/unified/cgroup.controllers", b"")
    assert doctor.cgroups(tmp_path).level == "ok"
    _put(tmp_path, "sys/fs/cgroup/cgroup.controllers", b"")
    assert doctor.cgroups(tmp_path).level == "ok"


def _config(tmp_path: Path, target: str) -> Config:
    return Config.model_validate(
        {
            "agent": {"state_dir": str(tmp_path)},
            "trust": {"key": str(tmp_path / "key")},
            "broker": {"target": target},
        }
    )


def test_key(tmp_path: Path) -> None:
    config = _config(tmp_path, "127.0.0.1:1")
    assert doctor.key(config).level == "fail"
    generate_key(tmp_path / "key", Kind.HOST)
    assert doctor.key(config).level == "ok"
    (tmp_path / "key").chmod(0o644)
    finding = doctor.key(config)
    assert finding.level == "fail"
    assert "chmod 600" in finding.detail + finding.advice
    assert doctor.key(Config()).level == "ok"


def test_the_key_of_a_unit_is_looked_at_where_the_unit_has_it_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate_key(tmp_path / "host.key", Kind.HOST)
    config = Config.model_validate({"trust": {"key": "credential:mvps-key"}, "broker": {"target": "127.0.0.1:1"}})
    # In place of the one that asks a running systemd: `systemctl cat` of a unit with a drop-in.
    handed = ("mvps-key:/nowhere", "mvps-key.old:/nowhere", f"mvps-key:{tmp_path}/host.key")
    shown = "\n".join(f"LoadCredential={value}" for value in handed)
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(f"#!/bin/sh\ntest \"$*\" = 'cat mvps-agent.service' || exit 1\necho '{shown}'\n")
    systemctl.chmod(0o755)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert doctor.key(config).level == "ok"
    systemctl.write_text("#!/bin/sh\nexit 1\n")
    finding = doctor.key(config)
    assert finding.level == "fail"
    assert "LoadCredential" in finding.detail


def test_broker(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        target = f"127.0.0.1:{listening.getsockname()[1]}"
        assert doctor.broker(_config(tmp_path, target)).level == "ok"
    assert doctor.broker(_config(tmp_path, target)).level == "fail"
    assert doctor.broker(_config(tmp_path, f"unix:{tmp_path}/none")).level == "fail"
    assert doctor.broker(Config()).level == "warn"


def test_state_dir(tmp_path: Path) -> None:
    assert doctor.state_dir(_config(tmp_path, "")).level == "ok"
    assert doctor.state_dir(_config(tmp_path / "none", "")).level == "warn"


def test_this_host_can_be_examined_and_every_complaint_has_advice() -> None:
    findings = doctor.examine(Config())
    assert len({f.check for f in findings}) == len(findings) == 18
    assert all(f.advice for f in findings if f.level != "ok")


def test_a_broker_with_tls(tmp_path: Path) -> None:
    """A handshake as the agent does it, and each side's reason to refuse it."""
    ca = Authority(tmp_path / "ca")
    site = make_site(tmp_path, ["host-1"])
    cert, key = ca.issue("broker")
    own_cert, own_key = ca.issue("own")
    settings = {
        "listen": "127.0.0.1:0", "database": tmp_path / "broker.db", "key": str(site.broker_key),
        "operator": site.operator, "manifests": site.manifests, "metrics": "",
        "tls_cert": cert, "tls_key": key, "tls_client_ca": ca.path,
    }  # fmt: skip
    broker = EmbeddedBroker(BrokerSettings.model_validate(settings))

    def ask(**tls: Path) -> doctor.Finding:
        names = {name: str(path) for name, path in tls.items()}
        return doctor.broker(Config.model_validate({"broker": {"target": broker.address} | names}))

    try:
        good = ask(tls_ca=ca.path, tls_cert=own_cert, tls_key=own_key)
        assert (good.level, "TLSv1" in good.detail) == ("ok", True)
        other = Authority(tmp_path / "other", "other")
        for bad, words in (
            (ask(tls_ca=other.path, tls_cert=own_cert, tls_key=own_key), "unable to get local issuer"),
            (ask(tls_ca=ca.path), "does it ask for a certificate|CERTIFICATE_REQUIRED"),
            (ask(tls_ca=tmp_path / "none"), "cannot read"),
            (ask(tls_ca=ca.path, tls_cert=own_cert, tls_key=key), "is not the key"),
        ):
            assert bad.level == "fail"
            assert re.search(words, bad.detail), bad
    finally:
        broker.stop()

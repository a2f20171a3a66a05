# SPDX-License-Identifier: Apache-2.0
"""Tiers: tests marked kernel or net need root and a real kernel, and say so when they are skipped.

``--require-tiers kernel,net`` (CI) turns every skip inside those tiers into a failure: a tier that a host could run
and did not must not look green. The vm tier takes minutes and runs when it is asked for: ``-m vm``, or required.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.vm import machine


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require-tiers", default="", help="comma-separated markers whose tests must not be skipped")


def _why_not(marker: str) -> str:
    if os.geteuid() != 0:
        return f"the {marker} tier needs root"
    if not Path("/sys/kernel/btf/vmlinux").exists():
        return f"the {marker} tier needs a kernel with BTF (CONFIG_DEBUG_INFO_BTF)"
    return ""


def _why_no_machine(config: pytest.Config) -> str:
    asked = "vm" in config.getoption("-m") or "vm" in config.getoption("--require-tiers").split(",")
    return machine.why_not() if asked else "the vm tier takes minutes: ./test -m vm"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reasons = {marker: _why_not(marker) for marker in ("kernel", "net")} | {"vm": _why_no_machine(config)}
    for item in items:
        for marker, reason in reasons.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report: pytest.TestReport = yield  # type: ignore[misc,assignment]
    required = item.config.getoption("--require-tiers").split(",")
    if report.skipped and not hasattr(report, "wasxfail") and any(item.get_closest_marker(m) for m in required if m):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, and its tier is required: {report.longrepr}"
    return report  # type: ignore[return-value]

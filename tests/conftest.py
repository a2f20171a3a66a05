# SPDX-License-Identifier: Apache-2.0
"""Tiers: tests marked kernel or net need root and a real kernel, and say so when they are skipped.

``--require-tiers kernel,net`` (CI) turns every skip inside those tiers into a failure: a tier that a host could run
and did not must not look green.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require-tiers", default="", help="comma-separated markers whose tests must not be skipped")


def _why_not(marker: str) -> str:
    if os.geteuid() != 0:
        return f"the {marker} tier needs root"
    if not Path("/sys/kernel/btf/vmlinux").exists():
        return f"the {marker} tier needs a kernel with BTF (CONFIG_DEBUG_INFO_BTF)"
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for marker in ("kernel", "net"):
            reason = _why_not(marker) if item.get_closest_marker(marker) else ""
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report: pytest.TestReport = yield  # type: ignore[misc,assignment]
    required = item.config.getoption("--require-tiers").split(",")
    if report.skipped and not hasattr(report, "wasxfail") and any(item.get_closest_marker(m) for m in required if m):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, and its tier is required: {report.longrepr}"
    return report  # type: ignore[return-value]

# SPDX-License-Identifier: Apache-2.0
"""Makes tests/broker/wire_samples.py importable; a PostgreSQL server for those who ask for one."""

import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "broker"))

import pytest
from postgres_server import PostgresServer, binaries


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A server of its own for each module that asks for one."""
    if binaries() is None:
        pytest.skip("no PostgreSQL server: apt-get install postgresql")
    running = PostgresServer()
    yield running
    running.remove()

# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections import deque

from hypothesis import given
from hypothesis import strategies as st
from tests.surplus.test_packets import HEALTH

from mvps.surplus.packets import HealthMinute, render
from mvps.surplus.sealed_health import MAX_BYTES, MAX_LINES, pack, unpack
from mvps.trust.limits import MAX_EXTENSION_BYTES


def line(tenant: str = "acme") -> bytes:
    return render(HealthMinute.model_validate_json(json.dumps(HEALTH | {"tenant": tenant})))


def test_an_extension_has_room_for_it() -> None:
    assert MAX_BYTES <= MAX_EXTENSION_BYTES


@given(st.lists(st.from_regex(r"[a-z]{1,60}", fullmatch=True), max_size=100))
def test_every_line_comes_out_once_and_in_order(tenants: list[str]) -> None:
    waiting = deque(map(line, tenants))
    found: list[str] = []
    while waiting:
        packed = pack(waiting)
        assert 0 < len(packed) <= MAX_BYTES
        minutes, refused = unpack(packed)
        assert not refused
        assert 0 < len(minutes) <= MAX_LINES
        found += [minute.tenant for minute in minutes]
    assert found == tenants
    assert pack(waiting) == b""


def test_what_is_no_health_is_counted_and_takes_nothing_with_it() -> None:
    good = line()
    minutes, refused = unpack(b"\n".join([good, b"{}", good[:-1], good]))
    assert len(minutes) == 2
    assert refused == {"malformed": 2}
    assert unpack(b"") == ([], {"malformed": 1})
    assert unpack(b"\n" * MAX_BYTES + b"\n") == ([], {"oversize": 1})
    minutes, refused = unpack(b"\n".join([b"{}"] * (MAX_LINES + 1)))
    assert (minutes, refused) == ([], {"oversize": 1, "malformed": MAX_LINES})


@given(st.binary(max_size=200))
def test_no_bytes_break_it(data: bytes) -> None:
    minutes, refused = unpack(data)
    assert len(minutes) + refused["malformed"] >= 1

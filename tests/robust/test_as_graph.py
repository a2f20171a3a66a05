# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import connected_components

from mvps.robust.as_graph import (
    AsGraph,
    RelationshipError,
    parse_relationships,
    relationship_lines,
    synthetic_internet,
)

SERIAL_2 = """# source:topology|BGP|20240101
# step 1: set peering in clique
174|209|0|bgp
174|64496|-1|bgp
209|64496|-1|mlp

209|4200000000|-1|bgp
"""


def test_both_serials_are_read():
    graph = parse_relationships(SERIAL_2.splitlines(keepends=True))
    assert graph.numbers.tolist() == [174, 209, 64496, 4200000000]
    assert graph.transit.tolist() == [[0, 2], [1, 2], [1, 3]]
    assert graph.peering.tolist() == [[0, 1]]
    assert graph.degree().tolist() == [2, 3, 2, 1]
    lines = SERIAL_2.splitlines()
    first = parse_relationships(line.rsplit("|", 1)[0] if line.count("|") == 3 else line for line in lines)
    assert first.transit.tolist() == graph.transit.tolist()
    assert graph.place(64496) == 2
    with pytest.raises(KeyError, match="AS7 is not in the graph of 4 ASes"):
        graph.place(7)


@settings(max_examples=30, deadline=None)
@given(st.integers(8, 200), st.integers(0, 99))
def test_what_is_written_is_read_back(ases: int, seed: int):
    graph = synthetic_internet(ases, seed)
    again = parse_relationships(relationship_lines(graph))
    assert np.array_equal(again.numbers, graph.numbers)
    assert np.array_equal(again.transit, graph.transit)
    assert np.array_equal(again.peering, graph.peering)


def test_a_link_said_twice_counts_once():
    graph = parse_relationships(["1|2|-1", "1|2|-1", "3|1|0", "1|3|0"])
    assert len(graph.transit) == 1
    assert len(graph.peering) == 1


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["1|2|-1", "2|1|-1"], "line 2: AS2 and AS1 had another relationship"),
        (["1|2|-1", "2|1|0"], "another relationship"),
        (["1|2"], "line 1 is '1|2': expected provider"),
        (["1|2|1"], "expected provider"),
        (["1|2|-1|x|y"], "expected provider"),
        (["1|x|-1"], "numbers only"),
        (["1|-2|-1"], "numbers only"),
        (["5|5|0"], "AS5 and AS5 cannot"),
        (["0|5|0"], "cannot"),
        (["1|4294967296|0"], "cannot"),
        (["1" * 201], "line 1 has more than 200 characters"),
        (["# nothing"], "no relationship"),
        (["1|2|0", "3|4|0", "5|6|0"], "line 3: more than 5 ASes or 9 links"),
        ([f"{a}|{b}|0" for a in range(1, 6) for b in range(a + 1, 6)], "more than 5 ASes or 9 links"),
    ],
)
def test_what_is_no_relationship_file_is_refused(lines: list[str], message: str):
    with pytest.raises(RelationshipError, match=message):
        parse_relationships(lines, max_ases=5, max_links=9)


@settings(max_examples=30, deadline=None)
@given(st.text(alphabet="0123456789|-#\n x", max_size=60))
def test_any_text_is_read_or_refused(text: str):
    try:
        graph = parse_relationships(text.splitlines())
    except RelationshipError:
        return
    assert graph.size >= 2


def test_the_made_up_internet_looks_like_one():
    graph = synthetic_internet(2000, 1)
    assert (graph.transit[:, 0] < graph.transit[:, 1]).all()  # no cycle of customers
    assert connected_components(graph.sessions())[0] == 1
    stubs = np.setdiff1d(np.arange(2000), graph.transit[:, 0])
    assert len(stubs) > 0.8 * 2000
    degree = np.sort(graph.degree())
    assert degree[-1] > 30 * np.median(degree)
    same = synthetic_internet(2000, 1)
    assert all(np.array_equal(a, b) for a, b in zip(graph, same, strict=True))
    for wrong in (7, 10**6):
        with pytest.raises(ValueError, match="a synthetic internet has"):
            synthetic_internet(wrong)


def test_sessions_go_both_ways():
    graph = AsGraph(np.array([1, 2, 3]), np.array([[0, 1]]), np.array([[1, 2]]))
    assert graph.sessions().toarray().tolist() == [[0, 1, 0], [1, 0, 1], [0, 1, 0]]

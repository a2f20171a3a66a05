# SPDX-License-Identifier: Apache-2.0
"""Vectors: the reference tree of google/certificate-transparency, cpp/merkletree/merkle_tree_test.cc.
The oracle is the recursive definition of RFC 9162 sections 2.1.1, 2.1.3.1 and 2.1.4.1, as it stands there."""

from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvps.trust.merkle import (
    EMPTY,
    EMPTY_ROOT,
    MAX_PROOF,
    Nodes,
    Tree,
    TreeHead,
    consistency_proof,
    consistent,
    included,
    inclusion_proof,
    leaf_hash,
    node_count,
    node_place,
    peaks_of,
    root_of,
)

INPUTS = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    bytes.fromhex(text)
    for text in (
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    )
]
# (leaf counted from 1, tree size, path)
PATHS = [
    (1, 1, []),
    (
        1,
        8,
        [
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ],
    ),
    (
        6,
        8,
        [
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ],
    ),
    (3, 3, ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"]),
    (
        2,
        5,
        [
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        ],
    ),
]
PROOFS = [
    (1, 1, []),
    (
        1,
        8,
        [
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ],
    ),
    (
        6,
        8,
        [
            "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ],
    ),
    (
        2,
        5,
        [
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        ],
    ),
]
SIZES = st.integers(0, 130)


# ---- the definitions, naively


def split(n: int) -> int:
    k = 1
    while k * 2 < n:
        k *= 2
    return k


def mth(leaves: list[bytes]) -> bytes:
    if not leaves:
        return sha256().digest()
    if len(leaves) == 1:
        return sha256(b"\x00" + leaves[0]).digest()
    k = split(len(leaves))
    return sha256(b"\x01" + mth(leaves[:k]) + mth(leaves[k:])).digest()


def path(m: int, leaves: list[bytes]) -> list[bytes]:
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    return [*path(m, leaves[:k]), mth(leaves[k:])] if m < k else [*path(m - k, leaves[k:]), mth(leaves[:k])]


def subproof(m: int, leaves: list[bytes], whole: bool) -> list[bytes]:
    if m == len(leaves):
        return [] if whole else [mth(leaves)]
    k = split(len(leaves))
    if m <= k:
        return [*subproof(m, leaves[:k], whole), mth(leaves[k:])]
    return [*subproof(m - k, leaves[k:], False), mth(leaves[:k])]


def data(size: int) -> list[bytes]:
    return [bytes([i % 256, i // 256]) for i in range(size)]


def stored(leaves: list[bytes]) -> Nodes:
    nodes = Tree().append(map(leaf_hash, leaves))
    assert len(nodes) == node_count(len(leaves))
    return lambda level, index: nodes[node_place(level, index)]


def head(leaves: list[bytes]) -> TreeHead:
    return TreeHead(len(leaves), mth(leaves))


# ---- published answers


def test_reference_roots() -> None:
    tree = Tree()
    assert tree.head == EMPTY
    assert EMPTY_ROOT.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    for size, (leaf, root) in enumerate(zip(INPUTS, ROOTS, strict=True), 1):
        tree.append([leaf_hash(leaf)])
        assert tree.head == (size, root)
        assert root_of(size, stored(INPUTS)) == root
    assert root_of(0, stored(INPUTS)) == EMPTY_ROOT


@pytest.mark.parametrize(("leaf", "size", "expected"), PATHS)
def test_reference_paths(leaf: int, size: int, expected: list[str]) -> None:
    proof = inclusion_proof(leaf - 1, size, stored(INPUTS))
    assert [step.hex() for step in proof] == expected
    assert included(leaf_hash(INPUTS[leaf - 1]), leaf - 1, TreeHead(size, ROOTS[size - 1]), proof)


@pytest.mark.parametrize(("old", "new", "expected"), PROOFS)
def test_reference_consistency(old: int, new: int, expected: list[str]) -> None:
    proof = consistency_proof(old, new, stored(INPUTS))
    assert [step.hex() for step in proof] == expected
    assert consistent(TreeHead(old, ROOTS[old - 1]), TreeHead(new, ROOTS[new - 1]), proof)


# ---- against the definitions


@given(SIZES, SIZES)
def test_roots_are_those_of_the_definition_in_any_number_of_steps(size: int, first: int) -> None:
    leaves = data(size)
    tree = Tree()
    nodes = tree.append(map(leaf_hash, leaves[:first]))
    nodes += tree.copy().append(map(leaf_hash, leaves[first:]))
    tree.append(map(leaf_hash, leaves[first:]))
    assert tree.head == head(leaves)
    resumed = Tree(size, [nodes[node_place(*peak)] for peak in peaks_of(size)])
    assert resumed.head == head(leaves)


@given(st.data(), st.integers(1, 130))
def test_inclusion_proofs_are_those_of_the_definition(choose: st.DataObject, size: int) -> None:
    leaves = data(size)
    index = choose.draw(st.integers(0, size - 1))
    proof = inclusion_proof(index, size, stored(data(size + 7)))
    assert proof == path(index, leaves)
    assert included(leaf_hash(leaves[index]), index, head(leaves), proof)


@given(st.data(), SIZES)
def test_consistency_proofs_are_those_of_the_definition(choose: st.DataObject, new: int) -> None:
    leaves = data(new)
    old = choose.draw(st.integers(0, new))
    proof = consistency_proof(old, new, stored(data(new + 7)))
    assert proof == (subproof(old, leaves, True) if old else [])
    assert consistent(head(leaves[:old]), head(leaves), proof)


@settings(max_examples=50)
@given(st.data(), st.integers(1, 70))
def test_nothing_but_the_right_inclusion_holds(choose: st.DataObject, size: int) -> None:
    leaves = data(size)
    index = choose.draw(st.integers(0, size - 1))
    leaf, tree = leaf_hash(leaves[index]), head(leaves)
    proof = path(index, leaves)
    for other in {index - 1, index + 1, index ^ 2, -1, size} - {index}:
        assert not included(leaf, other, tree, proof)
    assert not included(leaf_hash(b"wrong"), index, tree, proof)
    assert not included(leaf, index, TreeHead(size, EMPTY_ROOT), proof)
    for changed in mangled(proof, tree.root):
        assert not included(leaf, index, tree, changed)


@settings(max_examples=50)
@given(st.data(), st.integers(2, 70))
def test_nothing_but_the_right_consistency_holds(choose: st.DataObject, size: int) -> None:
    leaves = data(size)
    old = choose.draw(st.integers(1, size - 1))
    before, after = head(leaves[:old]), head(leaves)
    proof = subproof(old, leaves, True)
    for wrong in (TreeHead(old, EMPTY_ROOT), TreeHead(old, after.root), TreeHead(old + 1, before.root)):
        assert not consistent(wrong, after, proof)
    assert not consistent(TreeHead(old - 1, before.root), after, proof)
    assert not consistent(before, TreeHead(size, EMPTY_ROOT), proof)
    assert not consistent(before, TreeHead(size, before.root), proof)
    assert not consistent(before, after, [])
    for changed in mangled(proof, after.root):
        assert not consistent(before, after, changed)


def mangled(proof: list[bytes], root: bytes) -> list[list[bytes]]:
    changed = [[*proof, root], [root, *proof], [*proof, b""], [b"", *proof]]
    changed += [[*proof[:i], EMPTY_ROOT, *proof[i + 1 :]] for i in range(len(proof))]
    if proof:
        changed += [proof[:-1], proof[1:], [proof[0][:-1], *proof[1:]]]
    return changed


def test_a_rewritten_leaf_breaks_every_larger_tree() -> None:
    leaves = data(60)
    forked = [*leaves[:20], b"another", *leaves[21:]]
    for old in range(21, 60):
        proof = consistency_proof(old, 60, stored(forked))
        assert not consistent(head(leaves[:old]), head(forked), proof)


def test_heads_without_anything_between_them() -> None:
    one, two = head(data(1)), head(data(2))
    assert consistent(EMPTY, EMPTY, [])
    assert consistent(EMPTY, two, [])
    assert consistent(one, one, [])
    assert not consistent(TreeHead(0, one.root), two, [])
    assert not consistent(one, TreeHead(1, two.root), [])
    assert not consistent(two, one, [])
    assert not consistent(EMPTY, two, [two.root])
    assert not consistent(one, one, [one.root])


def test_proofs_have_a_largest_length() -> None:
    huge = TreeHead(1 << 64, EMPTY_ROOT)
    assert not included(EMPTY_ROOT, 0, huge, [EMPTY_ROOT] * (MAX_PROOF + 1))
    assert not consistent(TreeHead(1, EMPTY_ROOT), huge, [EMPTY_ROOT] * (MAX_PROOF + 1))


def test_proofs_of_what_is_not_there() -> None:
    nodes = stored(data(3))
    for index, size in ((3, 3), (-1, 3), (0, 0)):
        with pytest.raises(ValueError, match="no leaf"):
            inclusion_proof(index, size, nodes)
    with pytest.raises(ValueError, match="begin"):
        consistency_proof(4, 3, nodes)


def test_a_tree_needs_its_peaks() -> None:
    with pytest.raises(ValueError, match="2 peaks"):
        Tree(5, [EMPTY_ROOT])


def test_proofs_read_few_nodes() -> None:
    size = (1 << 40) - 1
    asked: list[tuple[int, int]] = []

    def count(level: int, index: int) -> bytes:
        asked.append((level, index))
        return EMPTY_ROOT

    inclusion_proof(12345, size, count)
    assert len(asked) <= 2 * 40
    asked.clear()
    consistency_proof(size // 3, size, count)
    assert len(asked) <= 2 * 40


@given(st.lists(st.integers(0, 40), max_size=6))
def test_many_leaves_at_a_time_give_the_same_tree(counts: list[int]) -> None:
    one, many = Tree(), Tree()
    leaf = 0
    for count in counts:
        hashes = [leaf_hash(bytes([leaf + i & 255])) for i in range(count)]
        leaf += count
        assert many.extend(b"".join(hashes)) == b"".join(one.append(hashes))
        assert many.head == one.head


def test_a_part_of_a_hash_is_no_leaf() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Tree().extend(bytes(33))

# SPDX-License-Identifier: Apache-2.0
"""The Merkle tree of RFC 9162 section 2.1 (the same as RFC 6962's) over SHA-256: heads, proofs, their verification.

    leaf = SHA-256(0x00 || data)      node = SHA-256(0x01 || left || right)      empty tree = SHA-256("")

A tree of n leaves splits at the largest power of two below n. Subtrees of 2^level leaves that start at a multiple of
2^level are *perfect*: they never change again, and every other hash is made of at most log2 n of them.

Storage order (ours, and that of Go's sumdb/tlog): each leaf is followed by the perfect subtrees it completes, so that
nodes are only ever appended. After n leaves there are ``node_count(n)`` = 2n - popcount(n) of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from typing import Final, NamedTuple, TypeAlias

from mvps.trust._gate import merkle_append

HASH_BYTES: Final = 32
EMPTY_ROOT: Final = sha256(b"").digest()
MAX_PROOF: Final = 63  # hashes; no tree of less than 2^63 leaves needs more

# Hash of the perfect subtree (level, index): leaves index << level up to (index + 1) << level.
Nodes: TypeAlias = Callable[[int, int], bytes]


class TreeHead(NamedTuple):
    """Number of leaves and the root over them."""

    size: int
    root: bytes


EMPTY: Final = TreeHead(0, EMPTY_ROOT)


def leaf_hash(data: bytes) -> bytes:
    """Hash of a leaf."""
    return sha256(b"\0" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of an inner node."""
    return sha256(b"\1" + left + right).digest()


def node_count(size: int) -> int:
    """Nodes in storage order after ``size`` leaves."""
    return 2 * size - size.bit_count()


def node_place(level: int, index: int) -> int:
    """Place of a perfect subtree in storage order, from 0."""
    return node_count(((index + 1) << level) - 1) + level


def peaks_of(size: int) -> list[tuple[int, int]]:
    """The perfect subtrees (level, index) that make up a tree, from the left."""
    return _pieces(0, size)


def lasting(begin: int, end: int, sizes: Iterable[int], level: int) -> list[tuple[int, int]]:
    """What to keep of the nodes that leaves ``begin`` to ``end`` - 1 completed when the rest of them goes.

    sizes: of trees from which consistency shall stay provable; those from ``begin`` - 2^level to ``end`` are looked at.
    level: from it on all perfect subtrees are kept, one in 2^level. As (level, index), in storage order.

    With them, and all nodes of later leaves, there remain (ours): inclusion of every leaf from ``end`` on, in every
    tree that has it; consistency between any two of ``sizes``, and from one of them to any tree of ``end`` leaves or
    more. For an aligned subtree left of the path to a leaf at or behind ``end`` either reaches beyond ``end``, or is a
    peak of the tree of ``end`` leaves; and a proof from a tree of ``size`` leaves is made of that tree's peaks, and of
    the subtrees right of the path to its end (or of peaks of the new tree, where those are not complete yet).
    """
    found = set(peaks_of(end))
    for high in range(level, end.bit_length()):
        found.update((high, index) for index in range(begin >> high, end >> high))
    for size in sizes:
        if begin - (1 << level) <= size <= end:
            found.update(_beside(size, level))
    completed = (piece for piece in found if begin < (piece[1] + 1) << piece[0] <= end)
    return sorted(completed, key=lambda piece: node_place(*piece))


def _beside(size: int, level: int) -> Iterator[tuple[int, int]]:
    """Below a level, the peaks of a tree and the perfect subtrees right of the path to its last leaf."""
    if not size:
        return
    pieces = peaks_of(size)
    yield from (piece for piece in pieces if piece[0] < level)
    low, index = pieces[-1]
    while low < level:
        if not index & 1:
            yield low, index + 1
        low, index = low + 1, index >> 1


class Tree:
    """A tree that grows: keeps its peaks, at most 64 hashes, and gives the nodes to store.

    size, peaks: where to go on, the hashes of ``peaks_of(size)``.
    """

    __slots__ = ("_peaks", "size")

    def __init__(self, size: int = 0, peaks: Sequence[bytes] = ()) -> None:
        if len(peaks) != size.bit_count():
            raise ValueError(f"a tree of {size} leaves has {size.bit_count()} peaks, not {len(peaks)}")
        self.size = size
        self._peaks = list(peaks)

    def extend(self, hashes: bytes) -> bytes:
        """Append leaf hashes that stand one after another; the new nodes in storage order. Native and much faster."""
        nodes, peaks = merkle_append(self.size, b"".join(self._peaks), hashes)
        self._peaks = [peaks[at : at + HASH_BYTES] for at in range(0, len(peaks), HASH_BYTES)]
        self.size += len(hashes) // HASH_BYTES
        return nodes

    def append(self, hashes: Iterable[bytes]) -> list[bytes]:
        """Append leaf hashes; the new nodes in storage order."""
        peaks, size = self._peaks, self.size
        nodes: list[bytes] = []
        for node in hashes:
            nodes.append(node)
            carry = size
            while carry & 1:  # a full subtree stands to the left: join it
                node = sha256(b"\1" + peaks.pop() + node).digest()
                nodes.append(node)
                carry >>= 1
            peaks.append(node)
            size += 1
        self.size = size
        return nodes

    def copy(self) -> Tree:
        """An independent tree of the same leaves."""
        return Tree(self.size, self._peaks)

    @property
    def head(self) -> TreeHead:
        """Size and root."""
        return TreeHead(self.size, _fold(self._peaks) if self._peaks else EMPTY_ROOT)


def root_of(size: int, nodes: Nodes) -> bytes:
    """Root over the first ``size`` leaves of a tree that may have more."""
    return _range_hash(0, size, nodes) if size else EMPTY_ROOT


def inclusion_proof(index: int, size: int, nodes: Nodes) -> list[bytes]:
    """Proof that leaf ``index`` is in the tree of ``size`` leaves (RFC 9162 section 2.1.3.1)."""
    if not 0 <= index < size:
        raise ValueError(f"there is no leaf {index} in a tree of {size}")
    proof: list[bytes] = []
    low, high = 0, size
    while high - low > 1:
        middle = low + _split(high - low)
        if index < middle:
            proof.append(_range_hash(middle, high, nodes))
            high = middle
        else:
            proof.append(_range_hash(low, middle, nodes))
            low = middle
    proof.reverse()
    return proof


def consistency_proof(old: int, new: int, nodes: Nodes) -> list[bytes]:
    """Proof that the tree of ``new`` leaves begins with that of ``old`` leaves (RFC 9162 section 2.1.4.1).

    Empty between equal sizes and from the empty tree, where there is nothing to prove.
    """
    if not 0 <= old <= new:
        raise ValueError(f"a tree of {new} leaves does not begin with one of {old}")
    proof: list[bytes] = []
    if old in (0, new):
        return proof
    low, high = 0, new
    while old != high:
        middle = low + _split(high - low)
        if old <= middle:
            proof.append(_range_hash(middle, high, nodes))
            high = middle
        else:
            proof.append(_range_hash(low, middle, nodes))
            low = middle
    if low:  # otherwise what is left is the old tree itself, whose root the verifier has
        proof.append(_range_hash(low, high, nodes))
    proof.reverse()
    return proof


def included(leaf: bytes, index: int, head: TreeHead, proof: Sequence[bytes]) -> bool:
    """Whether ``proof`` shows that the leaf hash stands at ``index`` (RFC 9162 section 2.1.3.2)."""
    if not 0 <= index < head.size or not _plausible(proof):
        return False
    first, last = index, head.size - 1
    node = leaf
    for step in proof:
        if last == 0:
            return False
        if first & 1 or first == last:
            node = node_hash(step, node)
            while not first & 1 and first:
                first >>= 1
                last >>= 1
        else:
            node = node_hash(node, step)
        first >>= 1
        last >>= 1
    return last == 0 and node == head.root


def consistent(old: TreeHead, new: TreeHead, proof: Sequence[bytes]) -> bool:
    """Whether ``proof`` shows that the new tree begins with the old one (RFC 9162 section 2.1.4.2).

    Beyond the RFC, which asks for 0 < old < new: between equal sizes, and from the empty tree, the proof is empty.
    """
    if not 0 <= old.size <= new.size or not _plausible(proof):
        return False
    if old.size == new.size:
        return not proof and old.root == new.root
    if old.size == 0:
        return not proof and old.root == EMPTY_ROOT
    if not proof:
        return False
    steps = list(proof)
    if old.size & (old.size - 1) == 0:
        steps.insert(0, old.root)
    first, last = old.size - 1, new.size - 1
    while first & 1:
        first >>= 1
        last >>= 1
    before = after = steps[0]
    for step in steps[1:]:
        if last == 0:
            return False
        if first & 1 or first == last:
            before = node_hash(step, before)
            after = node_hash(step, after)
            while not first & 1 and first:
                first >>= 1
                last >>= 1
        else:
            after = node_hash(after, step)
        first >>= 1
        last >>= 1
    return last == 0 and before == old.root and after == new.root


def _plausible(proof: Sequence[bytes]) -> bool:
    return len(proof) <= MAX_PROOF and all(len(step) == HASH_BYTES for step in proof)


def _split(size: int) -> int:
    """Largest power of two below ``size``."""
    return 1 << ((size - 1).bit_length() - 1)


def _pieces(low: int, high: int) -> list[tuple[int, int]]:
    """Perfect subtrees of a range that starts at a multiple of a power of two not below its length."""
    pieces = []
    while low < high:
        level = (high - low).bit_length() - 1
        pieces.append((level, low >> level))
        low += 1 << level
    return pieces


def _range_hash(low: int, high: int, nodes: Nodes) -> bytes:
    return _fold([nodes(level, index) for level, index in _pieces(low, high)])


def _fold(peaks: Sequence[bytes]) -> bytes:
    root = peaks[-1]
    for peak in reversed(peaks[:-1]):
        root = node_hash(peak, root)
    return root

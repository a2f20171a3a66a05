# SPDX-License-Identifier: Apache-2.0
"""Which candidates keep a text's structure: the checker that the controller asks, and one for JSON Schema.

``JsonStructure`` puts llguidance (extra ``ai``) behind the protocol: an incremental parser that answers for single
tokens and for paths of them without a mask over the vocabulary. A parser that was fed a token it refuses stays in
error: its row is *broken*, its answers mean nothing any more, and the controller leaves that row alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from mvps.surplus.trust_region import BoolArray

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

TokenArray = npt.NDArray[np.integer]
_STRUCTURAL = frozenset(b'{}[]:,"')


class StructureError(ValueError):
    """A grammar that cannot be used."""


class StructureChecker(Protocol):
    """What the controller asks about structure. Slots name requests; all answers are for their present state."""

    def valid_length(self, slots: TokenArray, paths: TokenArray) -> npt.NDArray[np.int64]:
        """How many leading tokens of each path (n, k, h) keep the structure: (n, k). A token of -1 ends a path."""
        ...

    def structural(self, tokens: TokenArray) -> BoolArray:
        """Which tokens are made of structure only (they repair), of any shape."""
        ...

    def at_boundary(self, slots: TokenArray) -> BoolArray:
        """Which requests may end here or must go on with given bytes: near the end of a section (n,)."""
        ...

    def broken(self, slots: TokenArray) -> BoolArray:
        """Which requests have no parser that could answer (n,)."""
        ...

    def advance(self, slots: TokenArray, tokens: TokenArray) -> None:
        """Take the sampled tokens (n,)."""
        ...


class JsonStructure:
    """JSON Schemas as structure, one parser per slot; a slot without one is broken.

    A slot's text is complete where its schema is satisfied; then only the end-of-text token keeps the structure.
    """

    def __init__(self, tokenizer: LLTokenizer, matcher: type[LLMatcher]) -> None:
        """Both from llguidance, which who wants this brings: nothing here imports it."""
        self._matcher = matcher
        self._tokenizer = tokenizer
        self._ends = frozenset(tokenizer.eos_tokens)
        self._parsers: dict[int, LLMatcher] = {}
        words = (tokenizer.decode_bytes([token]).strip() for token in range(tokenizer.vocab_size))
        self._structural = np.array([bool(word) and _STRUCTURAL.issuperset(word) for word in words])

    def open(self, slot: int, schema: Mapping[str, Any]) -> None:
        """A new text in a slot."""
        try:
            grammar = self._matcher.grammar_from_json_schema(json.dumps(schema))
        except ValueError as error:
            raise StructureError(f"the schema is no JSON Schema: {error}") from None
        parser = self._matcher(self._tokenizer, grammar, log_level=0)
        if parser.is_error():
            raise StructureError(f"the schema cannot be followed: {parser.get_error()}")
        self._parsers[slot] = parser

    def close(self, slot: int) -> None:
        """Forget a slot."""
        self._parsers.pop(slot, None)

    def complete(self, slot: int) -> bool:
        """Whether the text so far satisfies the schema."""
        parser = self._parsers.get(slot)
        return parser is not None and not parser.is_error() and parser.is_accepting()

    def valid_length(self, slots: TokenArray, paths: TokenArray) -> npt.NDArray[np.int64]:
        """See StructureChecker."""
        lengths = np.zeros(paths.shape[:2], dtype=np.int64)
        for row, (slot, candidates) in enumerate(zip(slots.tolist(), paths.tolist(), strict=True)):
            parser = self._usable(slot)
            if parser is not None:
                lengths[row] = [self._length(parser, path) for path in candidates]
        return lengths

    def structural(self, tokens: TokenArray) -> BoolArray:
        """See StructureChecker."""
        known = (tokens >= 0) & (tokens < len(self._structural))
        marked: BoolArray = known & self._structural[np.where(known, tokens, 0)]
        return marked

    def at_boundary(self, slots: TokenArray) -> BoolArray:
        """See StructureChecker."""
        parsers = [self._usable(slot) for slot in slots.tolist()]
        return np.array([p is not None and (p.is_accepting() or bool(p.compute_ff_bytes())) for p in parsers])

    def broken(self, slots: TokenArray) -> BoolArray:
        """See StructureChecker."""
        return np.array([self._usable(slot) is None for slot in slots.tolist()])

    def advance(self, slots: TokenArray, tokens: TokenArray) -> None:
        """See StructureChecker."""
        for slot, token in zip(slots.tolist(), tokens.tolist(), strict=True):
            parser = self._usable(slot)
            if parser is None or (token in self._ends and parser.is_accepting()):
                continue
            parser.consume_token(token)

    def _usable(self, slot: int) -> LLMatcher | None:
        parser = self._parsers.get(slot)
        return None if parser is None or parser.is_error() else parser

    def _length(self, parser: LLMatcher, path: Sequence[int]) -> int:
        if -1 in path:
            path = path[: path.index(-1)]
        if path and path[0] in self._ends:
            return int(parser.is_accepting())
        return parser.validate_tokens(list(path))

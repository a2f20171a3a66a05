# SPDX-License-Identifier: Apache-2.0
"""A prefix cache of bounded size as an engine keeps one per replica: contexts in tokens, the least recently used go.

What a miss means is the testbed's choice and not the cache's: it only counts, under the names that vLLM exports
(``vllm:prefix_cache_queries_total``, ``vllm:prefix_cache_hits_total``, both in tokens). Contexts are whole: an engine
drops single blocks, and a half-warm context would be half a hit there.
"""

from __future__ import annotations

from collections import OrderedDict


class PrefixCache:
    """capacity: tokens that fit, > 0. ``queries`` and ``hits``: tokens asked for and found; ``evicted``: contexts."""

    def __init__(self, capacity: int) -> None:
        self._held: OrderedDict[str, int] = OrderedDict()
        self._size = 0
        self._capacity = 0
        self.queries = self.hits = self.evicted = 0
        self.capacity = capacity

    @property
    def capacity(self) -> int:
        """Tokens that fit. Set lower, what no longer fits goes at once."""
        return self._capacity

    @capacity.setter
    def capacity(self, tokens: int) -> None:
        if tokens < 1:
            raise ValueError(f"a cache holds at least a token, not {tokens}")
        self._capacity = tokens
        self._shrink()

    @property
    def usage(self) -> float:
        """Share of the room that is taken, in [0, 1]."""
        return self._size / self._capacity

    def __len__(self) -> int:
        return len(self._held)

    def touch(self, context: str, tokens: int) -> bool:
        """Look a context of so many tokens up and keep it: whether it was warm.

        One that does not fit alone is never kept. ValueError for a context without tokens, or one that grew: a longer
        context is another one here.
        """
        if tokens < 1:
            raise ValueError(f"a context has at least a token, not {tokens}")
        self.queries += tokens
        known = self._held.get(context)
        if known is not None:
            if known != tokens:
                raise ValueError(f"the context {context} had {known} tokens and has {tokens}: name it anew")
            self._held.move_to_end(context)
            self.hits += tokens
            return True
        if tokens <= self._capacity:
            self._held[context] = tokens
            self._size += tokens
            self._shrink()
        return False

    def _shrink(self) -> None:
        while self._size > self._capacity:
            _, tokens = self._held.popitem(last=False)
            self._size -= tokens
            self.evicted += 1

"""Which worker a prompt goes to."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from miles_core.router.pool import Worker

BLOCK = 64
"""Tokens of a prefix that are remembered together."""
TEXT_BLOCK = 384
"""The same in bytes, of a prompt whose tokens are still the text of a list."""
REMEMBERED = 65_536
"""Prefixes that are remembered in all."""
LEAN = 32
"""Requests that a worker may have more than the idlest one and still get a prompt for its prefix."""


class Policy(Protocol):
    """Chooses among workers that may take a request."""

    def choose(self, workers: Sequence[Worker], tokens: Sequence[int] | bytes) -> Worker:
        """The worker for a prompt, which is tokens or their text; ``workers`` is not empty, and in the order of registration."""
        ...

    def forget(self) -> None:
        """Workers have new weights, and so empty caches."""
        ...


class LeastLoaded:
    """The worker with the fewest requests in flight, the first of equals."""

    def choose(self, workers: Sequence[Worker], tokens: Sequence[int] | bytes) -> Worker:
        """See the protocol."""
        return min(workers, key=lambda worker: worker.load)

    def forget(self) -> None:
        """See the protocol: it remembers nothing."""


class CacheAware:
    """The worker that saw the longest prefix of the prompt, as it may still hold its keys and values.

    Prefixes count in blocks of ``BLOCK`` tokens, and as the whole prompt. A worker that has over ``LEAN`` requests more than the
    idlest, and over half as many again, is passed over: affinity must not make a queue.
    """

    def __init__(self, remembered: int = REMEMBERED) -> None:
        self._limit = remembered
        self._seen: OrderedDict[int, str] = OrderedDict()

    def choose(self, workers: Sequence[Worker], tokens: Sequence[int] | bytes) -> Worker:
        """See the protocol."""
        keys = _prefixes(tokens)
        idlest = min(workers, key=lambda worker: worker.load)
        by_url = {worker.url: worker for worker in workers}
        found = next((by_url[url] for key in reversed(keys) if (url := self._seen.get(key)) in by_url), idlest)
        if found.load - idlest.load > LEAN and found.load > 1.5 * idlest.load:
            found = idlest
        for key in keys:
            self._seen[key] = found.url
            self._seen.move_to_end(key)
        while len(self._seen) > self._limit:
            self._seen.popitem(last=False)
        return found

    def forget(self) -> None:
        """See the protocol."""
        self._seen.clear()


def _prefixes(tokens: Sequence[int] | bytes) -> list[int]:
    """A number for every prefix of whole blocks, and for the prompt itself, from the shortest on."""
    keys: list[int] = []
    if isinstance(tokens, bytes):
        key = 0
        for at in range(0, len(tokens), TEXT_BLOCK):
            key = hash((key, tokens[at : at + TEXT_BLOCK]))
            keys.append(key)
        return keys
    for end in range(BLOCK, len(tokens) + BLOCK, BLOCK):
        keys.append(hash((keys[-1] if keys else 0, *tokens[end - BLOCK : end])))
    return keys


POLICIES: dict[str, Callable[[], Policy]] = {"cache-aware": CacheAware, "least-loaded": LeastLoaded}
"""By the names of ``--miles-router-policy``."""

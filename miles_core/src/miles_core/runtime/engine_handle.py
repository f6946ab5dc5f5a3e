"""How a trainer reaches an engine: non-blocking calls over Ray."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray


class RayEngineHandle:
    """Implements :class:`miles_core.weights.publisher.EngineHandle`."""

    def __init__(self, name: str, actor: Any) -> None:
        self.name = name
        self._actor = actor

    def call(self, method: str, *args: Any) -> Any:
        """Start a method of the engine; returns what :meth:`wait` takes."""
        return self._actor.call.remote(method, *args)

    def wait(self, futures: Sequence[Any], timeout: float) -> list[Any]:
        """Results in order.

        Raises:
            TimeoutError: not all ended within ``timeout`` seconds.
        """
        try:
            return list(ray.get(list(futures), timeout=timeout))
        except ray.exceptions.GetTimeoutError as error:
            raise TimeoutError(f"{self.name} did not answer within {timeout:.0f} s") from error

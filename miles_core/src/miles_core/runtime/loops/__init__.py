"""The loops of a run, one a file. Each is a function that takes a :class:`miles_core.runtime.loop.Loop` and reads top to bottom."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from miles_core.runtime.loops import asynchronous, one_step, synchronous

if TYPE_CHECKING:
    from miles_core.runtime.loop import Loop

LOOPS: dict[str, Callable[[Loop], None]] = {
    "sync": synchronous.run,
    "one-step": one_step.run,
    "async": asynchronous.run,
}
"""By the name that ``--loop`` takes."""

__all__ = ["LOOPS"]

"""A request on its way through the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from miles_core.samples import FinishReason, GenerateRequest


@dataclass(eq=False)
class Job:
    """One request.

    Attributes:
        order: running number of arrival; earlier ones are admitted first and evicted last.
        seed: of its draws.
        max_new: tokens to make at most, within the context.
        stop_ids: tokens that end it.
        output_ids, log_probs: what it made; while it holds a slot, the slot's row has them.
        version: version of the weights that made its first token, the oldest of all its tokens.
        reason: why it ended; None before.
        input_log_probs: of the prompt's tokens, once they are scored; None before, and where nobody asked.
        routes: the experts of the tokens that went through the model, int16: ``[T, layers, top_k]`` of the prefill, then
            ``[1, layers, top_k]`` of each step. Empty where nobody asked.
    """

    request: GenerateRequest
    order: int
    seed: int
    max_new: int
    stop_ids: tuple[int, ...]
    owner: Submission
    output_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    version: int | None = None
    reason: FinishReason | None = None
    input_log_probs: tuple[tuple[float | None, int], ...] | None = None
    routes: list[np.ndarray] = field(default_factory=list)

    @property
    def unscored(self) -> bool:
        """Whether its prompt's log-probs are asked for and not there yet."""
        return self.request.logprob_start is not None and self.input_log_probs is None

    @property
    def routed_experts(self) -> bytes | None:
        """The routes of all its tokens but the last, int32, ``[tokens - 1, layers, top_k]``; None where there are none."""
        return np.concatenate(self.routes).astype("<i4").tobytes() if self.routes else None

    @property
    def tokens(self) -> list[int]:
        """Prompt and what was made so far."""
        return [*self.request.input_ids, *self.output_ids]

    @property
    def length(self) -> int:
        """Number of :attr:`tokens`."""
        return len(self.request.input_ids) + len(self.output_ids)

    @property
    def limit(self) -> int:
        """Most tokens that prompt and response can come to."""
        return len(self.request.input_ids) + self.max_new


@dataclass(eq=False)
class Submission:
    """Jobs that were handed in together. ``deliver`` is called from the decoding thread, with jobs that ended or an error."""

    deliver: Callable[[list[Job] | BaseException], None]
    jobs: list[Job] = field(default_factory=list)

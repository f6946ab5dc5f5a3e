"""The sample as functions written for scripts of miles see it: tokens, lengths and log-probs are plain attributes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from miles_core.samples import Sample
from miles_core.samples import Status as State

if TYPE_CHECKING:
    import numpy as np


@dataclass
class LegacySample:
    """One sample. ``tokens`` are prompt and response; ``loss_mask`` and ``rollout_log_probs`` are those of the response, and
    ``rollout_routed_experts`` is ``[tokens - 1, layers, top_k]``.

    Further attributes may be set; they are forgotten.
    """

    Status: ClassVar[type[State]] = State

    group_index: int
    index: int
    prompt: Any
    tokens: list[int]
    label: Any
    metadata: dict[str, Any]
    response: str = ""
    response_length: int = 0
    reward: Any = None
    loss_mask: list[int] | None = None
    rollout_log_probs: list[float] | None = None
    weight_versions: list[str] = field(default_factory=list)
    rollout_routed_experts: Any = None
    status: State = State.PENDING
    remove_sample: bool = False

    @classmethod
    def of(cls, sample: Sample) -> LegacySample:
        """A copy of a fresh sample."""
        return cls(
            sample.group_index, sample.index, sample.prompt, list(sample.tokens), sample.label, sample.metadata, sample.response
        )

    def settle(self, sample: Sample) -> None:
        """Take over what a function made.

        Versions are told for each engine call and not for each token: with several, all tokens count as of the earliest.

        Raises:
            ValueError: tokens of the prompt changed, or lengths disagree.
        """
        start, length = len(self.tokens) - self.response_length, self.response_length
        if length < 0 or list(self.tokens[:start]) != sample.prompt_ids:
            raise ValueError(f"its first {start} tokens of {len(self.tokens)} are not the prompt's {len(sample.prompt_ids)}")
        sample.response_ids = [int(token) for token in self.tokens[start:]]
        sample.response = self.response
        sample.loss_mask = None if self.loss_mask is None else [int(keep) for keep in self.loss_mask]
        sample.rollout_log_probs = None if self.rollout_log_probs is None else [float(value) for value in self.rollout_log_probs]
        versions = [int(text) for text in map(str, self.weight_versions) if text.lstrip("-").isdigit()]
        sample.weight_versions = [(min(versions), length)] if versions else []
        if self.rollout_routed_experts is not None:
            sample.routed_experts = _routes(self.rollout_routed_experts, len(self.tokens))
        sample.status = State(str(getattr(self.status, "value", self.status)))
        sample.metadata = self.metadata
        sample.removed = bool(self.remove_sample)
        sample.check()


def _routes(given: Any, tokens: int) -> np.ndarray:
    import numpy as np

    routes = np.asarray(given)
    if routes.ndim != 3 or len(routes) != tokens - 1:
        raise ValueError(f"rollout_routed_experts has shape {routes.shape} for {tokens} tokens")
    return routes.astype(np.int16)

"""A sample: one prompt with one response, from the data set to the loss."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from miles_core.samples.score import Score, Scored

if TYPE_CHECKING:
    import numpy as np


class Status(enum.StrEnum):
    """How far a sample came."""

    PENDING = "pending"
    COMPLETED = "completed"
    TRUNCATED = "truncated"
    ABORTED = "aborted"
    FAILED = "failed"


@dataclass
class Sample:
    """One prompt and one response. Token ids are append-only: text is never tokenised a second time.

    Attributes:
        index: running number of the sample in the run; unique.
        group_index: running number of its prompt's group in the run; siblings share it.
        prompt: text or chat messages, as read from the data.
        prompt_ids: the prompt's token ids, made once.
        response_ids: the response's token ids.
        response: the response's text.
        label: ground truth, as read from the data.
        metadata: the row's metadata, and what hooks add.
        media: images, videos and sounds of the prompt in order, by kind: paths, URLs or base64.
        loss_mask: per response token, 1 where it is trained on; None means all.
        rollout_log_probs: per response token, the engine's log-prob; None when the engine made no token of it.
        weight_versions: per response token, the version of the weights that made it, as ``(version, tokens)`` runs.
        routed_experts: the experts that the engine sent every token but the last to, int16, ``[T - 1, layers, top_k]`` over prompt
            and response; None unless ``--use-rollout-routing-replay``. A function that changes tokens must keep it in step.
        status: how generation ended.
        score: the reward's answer; None before grading.
        reward: the number picked from the score; None for a failed or ungraded sample.
        teacher_log_probs: per response token, the teacher's log-prob, when a server scored it; None otherwise.
        removed: excluded from the loss by a sample filter, or because the teacher could not score it; still counted in its group
            and in the batch.
    """

    index: int = -1
    group_index: int = -1
    prompt: str | list[dict[str, Any]] = ""
    prompt_ids: list[int] = field(default_factory=list)
    response_ids: list[int] = field(default_factory=list)
    response: str = ""
    label: Any = None
    metadata: dict[str, Any] = field(default_factory=dict)
    media: dict[str, list[str]] = field(default_factory=dict)
    loss_mask: list[int] | None = None
    rollout_log_probs: list[float] | None = None
    weight_versions: list[tuple[int, int]] = field(default_factory=list)
    routed_experts: np.ndarray | None = field(default=None, compare=False, repr=False)
    status: Status = Status.PENDING
    score: Score | None = None
    reward: float | None = None
    teacher_log_probs: list[float] | None = None
    removed: bool = False

    @property
    def tokens(self) -> list[int]:
        """Prompt and response ids, ``[P + R]``."""
        return self.prompt_ids + self.response_ids

    @property
    def response_length(self) -> int:
        """Response tokens, R."""
        return len(self.response_ids)

    @property
    def finished(self) -> bool:
        """Whether nothing more is to be generated."""
        return self.status in (Status.COMPLETED, Status.TRUNCATED, Status.FAILED)

    @property
    def remove_sample(self) -> bool:
        """Another name of ``removed``."""
        return self.removed

    @remove_sample.setter
    def remove_sample(self, value: bool) -> None:
        self.removed = value

    @property
    def failed(self) -> bool:
        """Whether grading was tried and failed."""
        return self.score is not None and not isinstance(self.score, Scored)

    def train_mask(self) -> list[int]:
        """The mask that the loss uses, ``[R]``: zeros for a removed or failed sample."""
        if self.removed or self.failed:
            return [0] * self.response_length
        return list(self.loss_mask) if self.loss_mask is not None else [1] * self.response_length

    def check(self) -> None:
        """Raise ``ValueError`` when lengths disagree."""
        r = self.response_length
        for name in ("loss_mask", "rollout_log_probs", "teacher_log_probs"):
            value = getattr(self, name)
            if value is not None and len(value) != r:
                raise ValueError(f"sample {self.index}: {name} has {len(value)} entries for {r} response tokens")
        versions = sum(n for _, n in self.weight_versions)
        if self.weight_versions and versions != r:
            raise ValueError(f"sample {self.index}: weight_versions cover {versions} of {r} response tokens")


SampleGroup = Sequence[Sample]
"""The n samples of one prompt."""


def row_reward(metadata: Mapping[str, Any]) -> str:
    """The reward that a row's metadata names, or nothing. What is no text is taken for a name, which then nobody has."""
    name = metadata.get("rm_type")
    return "" if name is None else str(name).strip()

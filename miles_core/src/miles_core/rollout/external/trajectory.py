"""A trajectory as agents post it: plain JSON, with token ids."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from miles_core.runtime.experts import Experts
from miles_core.samples import Sample, Scored, Status

if TYPE_CHECKING:
    import numpy as np

LONGEST_ID = 256
"""Characters of an id."""
FINISHED = {"stop": Status.COMPLETED, "length": Status.TRUNCATED}
_ROUNDING = 1e-3
_LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Trajectory:
    """One response to one prompt.

    Attributes:
        instance_id: of the group: all trajectories of one prompt share it.
        uid: of the trajectory.
        prompt_ids, response_ids: tokens, ``[P]`` and ``[R]``, as the engine took and made them.
        log_probs: of the response tokens, ``[R]``; 0 where no model made the token.
        loss_mask: of the response tokens, ``[R]``, 1 where it is trained on; None means all.
        weight_version: of the engine that made the tokens; None when the agent does not say.
        routes: the experts of all tokens but the last, int16 ``[P + R - 1, layers, top_k]``, where the run trains with them.
    """

    instance_id: str
    uid: str
    prompt_ids: list[int]
    response_ids: list[int]
    log_probs: list[float]
    reward: float
    loss_mask: list[int] | None = None
    weight_version: int | None = None
    status: Status = Status.COMPLETED
    extra_info: dict[str, Any] = field(default_factory=dict)
    prompt: str | list[dict[str, Any]] = ""
    routes: np.ndarray | None = None

    def sample(self, index: int, group: int, response: str) -> Sample:
        """The sample of these numbers; ``response`` is its text."""
        r = len(self.response_ids)
        return Sample(
            index=index,
            group_index=group,
            prompt=self.prompt,
            prompt_ids=self.prompt_ids,
            response_ids=self.response_ids,
            response=response,
            metadata={**self.extra_info, "instance_id": self.instance_id, "uid": self.uid},
            loss_mask=self.loss_mask,
            rollout_log_probs=self.log_probs,
            weight_versions=[] if self.weight_version is None else [(self.weight_version, r)],
            routed_experts=self.routes,
            status=self.status,
            score=Scored(self.reward),
            reward=self.reward,
        )


def read_id(value: object, name: str) -> str:
    """An id: text, or a whole number, which counts as its digits.

    Raises:
        ValueError: it is something else, empty, or too long.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value or len(value) > LONGEST_ID:
        raise ValueError(f"{name} is no id: text of 1 to {LONGEST_ID} characters, or a whole number")
    return value


def read_trajectory(
    document: Any, vocabulary: int | None = None, max_tokens: int | None = None, experts: Experts | None = None
) -> Trajectory:
    """The trajectory in a JSON document.

    Args:
        vocabulary: rows of the model's vocabulary head; ids are below. None when unknown.
        max_tokens: that prompt and response may have together; None for no limit.
        experts: of the model, where routes are needed; None where they are left aside.

    Raises:
        ValueError: something is missing or contradicts the rest.
    """
    if not isinstance(document, Mapping):
        raise ValueError("a trajectory is a JSON object")
    instance_id, uid = (read_id(document.get(name), name) for name in ("instance_id", "uid"))
    prompt_ids, response_ids = (_token_ids(document.get(name), name, vocabulary) for name in ("prompt_ids", "response_ids"))
    length = len(prompt_ids) + len(response_ids)
    if max_tokens is not None and length > max_tokens:
        raise ValueError(f"it has {length} tokens, more than the run's {max_tokens}")
    log_probs = _list(document.get("log_probs"), "log_probs", len(response_ids))
    if not all(_finite(value) and value <= _ROUNDING for value in log_probs):
        raise ValueError("log_probs holds something that is no log-prob")
    mask = document.get("loss_mask")
    if mask is not None:
        mask = _list(mask, "loss_mask", len(response_ids))
        if not all(type(keep) is int and keep in (0, 1) for keep in mask):
            raise ValueError("loss_mask holds something other than 0 and 1")
    reward: Any = document.get("reward")
    if not _finite(reward):
        raise ValueError("reward is no finite number")
    version = document.get("weight_version")
    if version is not None and (type(version) is not int or version < 0):
        raise ValueError("weight_version is no whole number of 0 or more")
    extra = document.get("extra_info") or {}
    if not isinstance(extra, Mapping):
        raise ValueError("extra_info is no JSON object")
    reason = extra.get("finish_reason", "stop")
    if not isinstance(reason, str) or reason not in FINISHED:
        raise ValueError(f"extra_info.finish_reason is {reason!r:.40}, not one of {', '.join(FINISHED)}")
    return Trajectory(
        instance_id=instance_id,
        uid=uid,
        prompt_ids=prompt_ids,
        response_ids=response_ids,
        log_probs=[float(value) for value in log_probs],
        reward=float(reward),
        loss_mask=mask,
        weight_version=version,
        status=FINISHED[reason],
        extra_info=dict(extra),
        prompt=_messages(document.get("messages")),
        routes=None if experts is None else _routes(document.get("routed_experts"), length, experts),
    )


def load_object(data: bytes) -> dict[str, Any]:
    """The JSON object in a body.

    Raises:
        ValueError: it is none.
    """
    try:
        document = json.loads(data or b"{}")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise ValueError(f"it is {type(document).__name__}, not a JSON object")
    return document


def _finite(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _list(value: Any, name: str, length: int) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{name} is missing, or no list")
    if len(value) != length:
        raise ValueError(f"{name} has {len(value)} entries for {length} response tokens")
    return value


def _token_ids(value: Any, name: str, vocabulary: int | None) -> list[int]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name} is missing, empty, or no list")
    limit = _LARGEST if vocabulary is None else vocabulary
    odd = next((token for token in value if type(token) is not int or not 0 <= token < limit), None)
    if odd is not None or None in value:
        raise ValueError(f"{name} holds {odd!r:.40}, which is no token of a vocabulary of {limit}")
    return value


def _routes(value: Any, tokens: int, experts: Experts) -> np.ndarray:
    from miles_core.rollout.routing import read_routes

    if not isinstance(value, str):
        raise ValueError("routed_experts is missing, and the run trains with them")
    try:
        return read_routes(base64.b64decode(value, validate=True), tokens, experts)
    except ValueError as error:
        raise ValueError(f"routed_experts cannot be used: {error}") from None


def _messages(value: Any) -> str | list[dict[str, Any]]:
    """For people to look at; training is on the ids."""
    if value is None:
        return ""
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise ValueError("messages is no list of JSON objects")
    return value

"""A ``POST /generate``: its prompts, and parts of it for several workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from miles_core.serving.wire import MEDIA

EACH = ("input_ids", "sampling_params", "rid", "logprob_start_len", *(f"{kind}_data" for kind in MEDIA))
"""Fields that a batch may have as a list with an entry for each prompt."""


@dataclass(frozen=True)
class Call:
    """What was asked for; the engines check what it says.

    Attributes:
        prompts: token ids of each prompt, for the choice of a worker.
        batched: whether the body held a list of prompts.
    """

    document: dict[str, Any]
    prompts: tuple[Sequence[int], ...]
    batched: bool
    stream: bool

    @classmethod
    def of(cls, document: dict[str, Any]) -> Call:
        """The call in a body.

        Raises:
            ValueError: it has no prompts, or rids that are not one for each.
        """
        ids = document.get("input_ids")
        if not isinstance(ids, list) or not ids:
            raise ValueError("input_ids must be a list of token ids, or a list of such lists")
        batched = isinstance(ids[0], list)
        prompts = tuple(ids) if batched else (ids,)
        if not all(isinstance(prompt, list) for prompt in prompts):
            raise ValueError("input_ids must be a list of token ids, or a list of such lists")
        if not {kind for prompt in prompts for kind in set(map(type, prompt))} <= {int}:
            raise ValueError("input_ids holds something that is not a token id")
        rid = document.get("rid")
        if batched and isinstance(rid, str):
            document = {**document, "rid": [f"{rid}_{i}" for i in range(len(prompts))]}
        if batched:
            for name in EACH:
                value = document.get(name)
                if isinstance(value, list) and len(value) != len(prompts) and len(prompts) > 1:
                    raise ValueError(f"{name} has {len(value)} entries for {len(prompts)} prompts")
        return cls(document, prompts, batched, bool(document.get("stream")))

    def part(self, indices: Sequence[int]) -> dict[str, Any]:
        """The body for some of the prompts."""
        if len(indices) == len(self.prompts):
            return self.document
        each = {name: value for name in EACH if isinstance(value := self.document.get(name), list)}
        return {**self.document, **{name: [value[i] for i in indices] for name, value in each.items()}}

    def groups(self) -> list[list[int]]:
        """Indices of equal prompts, which go to one worker that then computes the prompt once."""
        found: dict[tuple[int, ...], list[int]] = {}
        for index, prompt in enumerate(self.prompts):
            found.setdefault(tuple(prompt), []).append(index)
        return list(found.values())

    def aborted(self, index: int, version: int | None) -> dict[str, Any]:
        """The answer to a prompt whose worker went away after everything was aborted: nothing was made."""
        rid = self.document.get("rid")
        meta: dict[str, Any] = {
            "id": rid[index] if isinstance(rid, list) else rid,
            "finish_reason": {"type": "abort", "message": "aborted"},
            "prompt_tokens": len(self.prompts[index]),
            "completion_tokens": 0,
            "cached_tokens": 0,
            "weight_version": str(0 if version is None else version),
            "output_token_logprobs": [],
        }
        return {"text": "", "output_ids": [], "meta_info": meta}

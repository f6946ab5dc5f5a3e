"""Samples on disk, for people to look at."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from miles_core.samples import Sample, Scored

SAMPLES_PER_FILE = 64
DROPPED_PER_FILE = 32
"""Samples of dropped groups in a file, besides those that are trained on."""
TOKENS_PER_SAMPLE = 2048
TOKENS_PER_FILE = 32768
"""Tokens whose place in the text and log-prob are written."""
CHARACTERS_PER_FILE = 2_000_000
"""Of prompts and responses; with more of them there are fewer samples, but one."""
_UNFINISHED = "\ufffd"
_LONGEST_CHARACTER = 8
"""Tokens after which a character that is still not whole is taken as it is."""

Decode = Callable[[Sequence[int]], str]


class Recorder:
    """Writes the samples of a rollout or an evaluation.

    Args:
        folder: where the files go.
        decode: text of response tokens, with special tokens left out as in the responses.
        decode_prompts: texts of prompts.
    """

    def __init__(self, folder: Path, decode: Decode, decode_prompts: Callable[[list[list[int]]], list[str]]) -> None:
        self._folder = folder
        self._decode = decode
        self._decode_prompts = decode_prompts
        self._texts: dict[int, str] = {}

    def write(
        self,
        name: str,
        samples: Sequence[Sample],
        dropped: Sequence[Sequence[Sample]] = (),
        reasons: Mapping[int, str] | None = None,
    ) -> list[dict[str, Any]]:
        """Write the first samples, and the first of the dropped ones; returns what was written.

        Args:
            name: of the file, without suffix.
            samples: that the rollout is made of.
            dropped: groups that a filter dropped.
            reasons: why, by group.
        """
        lost = [sample for group in dropped for sample in group][:DROPPED_PER_FILE]
        shown = [*samples[:SAMPLES_PER_FILE], *lost]
        prompts = self._decode_prompts([sample.prompt_ids for sample in shown])
        described: list[dict[str, Any]] = []
        budget, characters = TOKENS_PER_FILE, 0
        for number, (sample, prompt) in enumerate(zip(shown, prompts, strict=True)):
            characters += len(prompt) + len(sample.response)
            if described and characters > CHARACTERS_PER_FILE:
                break
            said = describe(sample, prompt)
            if number >= len(shown) - len(lost):
                said["dropped"] = (reasons or {}).get(sample.group_index, "dropped")
            count = min(budget, sample.response_length, TOKENS_PER_SAMPLE)
            said |= self._tokens(sample, count)
            budget -= count
            described.append(said)
        write_samples(self._folder, name, described)
        return described

    def _tokens(self, sample: Sample, count: int) -> dict[str, Any]:
        """Of the first ``count`` tokens: where each ends in the text, and its log-prob to three places."""
        found: dict[str, Any] = {}
        ends = self._ends(sample, count)
        if ends:
            found["token_ends"] = ends
        if sample.rollout_log_probs is not None and count:
            found["log_probs"] = [round(value, 3) for value in sample.rollout_log_probs[:count]]
        if sample.loss_mask is not None and not all(sample.loss_mask) and count:
            found["loss_mask"] = "".join(str(int(bool(keep))) for keep in sample.loss_mask[:count])
        return found

    def _ends(self, sample: Sample, count: int) -> list[int]:
        """Where tokens end, in characters; a token within a character ends where the one before it does.

        Empty when the texts of the tokens do not make up the response.
        """
        ends: list[int] = []
        position, pending = 0, []
        for number, token in enumerate(sample.response_ids[:count]):
            pending.append(token)
            text = self._text(token) if len(pending) == 1 else self._decode(pending)
            whole = not text.endswith(_UNFINISHED) or len(pending) >= _LONGEST_CHARACTER or number == count - 1
            if whole:
                if not sample.response.startswith(text, position) and number < count - 1:
                    return []
                position = min(position + len(text), len(sample.response))
                pending = []
            ends.append(position)
        return ends

    def _text(self, token: int) -> str:
        if token not in self._texts:
            self._texts[token] = self._decode([token])
        return self._texts[token]


def describe(sample: Sample, prompt: str) -> dict[str, Any]:
    """One sample as plain JSON."""
    detail = getattr(sample.score, "detail", "") if sample.score is not None else ""
    said = {
        "index": sample.index,
        "group": sample.group_index,
        "prompt": prompt,
        "response": sample.response,
        "label": sample.label,
        "reward": sample.reward,
        "graded": isinstance(sample.score, Scored),
        "detail": detail,
        "status": str(sample.status),
        "response_tokens": sample.response_length,
        "weight_versions": sample.weight_versions,
    }
    return {**said, "removed": True} if sample.removed else said


def write_samples(folder: Path, name: str, samples: Sequence[dict[str, Any]]) -> None:
    """Write ``<folder>/<name>.jsonl``; a name that is no file name is made one."""
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^\w.+=@-]", "_", name)
    lines = [json.dumps(sample, ensure_ascii=False, default=str) for sample in samples]
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8", errors="backslashreplace")

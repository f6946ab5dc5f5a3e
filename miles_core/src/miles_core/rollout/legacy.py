"""What ``--custom-convert-samples-to-train-data-path`` returns, checked and as rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from miles_core.errors import RunError
from miles_core.rollout.routing import whole_routes
from miles_core.samples import Sample
from miles_core.training.rows import TrainRow

REQUIRED = ("tokens", "response_lengths", "rewards", "raw_reward", "truncated", "sample_indices", "loss_masks")
OPTIONAL = ("rollout_log_probs", "teacher_log_probs")
Fail = Callable[[str, str], RunError]


def checked_rows(answer: object, samples: Sequence[Sample], fail: Fail) -> list[TrainRow]:
    """The answer as rows: a list of them, or a dict of lists.

    Args:
        fail: makes the error of a breach, from what is wrong and what to do.

    Raises:
        RunError: it is neither, or is not consistent with itself and the samples (M407).
    """
    if isinstance(answer, Mapping):
        rows = _from_dict(answer, samples, fail)
    elif isinstance(answer, Sequence) and all(isinstance(row, TrainRow) for row in answer):
        rows = list(answer)
    else:
        raise fail(f"returned {type(answer).__name__}", "return a list of TrainRow, or a dict of lists")
    if len(rows) != len(samples):
        raise fail(f"made {len(rows)} rows of {len(samples)} samples", "make one row per sample")
    for place, row in enumerate(rows):
        _check(place, row, fail)
    return rows


def _from_dict(data: Mapping[str, Any], samples: Sequence[Sample], fail: Fail) -> list[TrainRow]:
    missing = [key for key in REQUIRED if key not in data]
    unknown = [str(key) for key in data if key not in REQUIRED + OPTIONAL]
    if missing:
        raise fail(f"returned a dict without {', '.join(missing)}", f"return {', '.join(REQUIRED)}")
    if unknown:
        raise fail(f"returned {', '.join(unknown)}, which nothing would use", f"return {', '.join(REQUIRED + OPTIONAL)} only")
    count = len(data["tokens"])
    for key, values in data.items():
        if len(values) != count:
            raise fail(f"returned {len(values)} {key} and {count} tokens", "return lists of one length, an entry per sample")
    known = {sample.index: sample for sample in samples}
    rows = []
    for i in range(count):
        index = int(data["sample_indices"][i])
        if index not in known:
            raise fail(f"returned the sample index {index}, which this rollout has not", "take sample.index")
        try:
            rows.append(_row(data, i, known[index]))
        except (TypeError, ValueError) as error:
            raise fail(f"returned an entry {i} that is no numbers: {error}", "return lists of numbers") from error
    return rows


def _row(data: Mapping[str, Any], i: int, sample: Sample) -> TrainRow:
    def numbers(key: str) -> np.ndarray | None:
        return np.asarray(data[key][i], np.float32) if key in data and data[key][i] is not None else None

    mask, teacher = numbers("loss_masks"), numbers("teacher_log_probs")
    assert mask is not None
    return TrainRow(
        index=sample.index,
        group=sample.group_index,
        tokens=np.asarray(data["tokens"][i], np.int32),
        response_length=int(data["response_lengths"][i]),
        mask=mask,
        reward=float(data["rewards"][i]),
        raw_reward=float(data["raw_reward"][i]),
        rollout_log_probs=numbers("rollout_log_probs"),
        truncated=bool(data["truncated"][i]),
        version=min((version for version, _ in sample.weight_versions), default=-1),
        extras={} if teacher is None else {"teacher_log_probs": teacher},
        routes=whole_routes(sample),
    )


def _check(place: int, row: TrainRow, fail: Fail) -> None:
    length = row.response_length
    if not 1 <= length < len(row.tokens):
        why = f"row {place} has a response of {length} in {len(row.tokens)} tokens"
        raise fail(f"made rows that cannot be trained on: {why}", "give at least one token of prompt and of response")
    arrays = {"mask": row.mask, "rollout_log_probs": row.rollout_log_probs, **row.extras}
    for name, values in arrays.items():
        if values is not None and np.shape(values) != (length,):
            why = f"row {place} has {name} of shape {np.shape(values)} for {length} response tokens"
            raise fail(f"made rows that do not fit: {why}", f"give {name} one entry per response token")
        if values is not None and not np.isfinite(values).all():
            raise fail(f"made {name} of row {place} that are not finite", "give finite numbers")
    if not math.isfinite(row.reward):
        raise fail(f"made a reward of row {place} that is not finite", "give finite numbers, and an all-zero mask to what failed")

"""The samples of a rollout in a file, with nothing lost.

One ``.npz`` archive (:mod:`miles_core.debug.archive`). Its document has ``rollout_id``, ``metrics`` and ``samples``: each sample's
fields but for the lists of numbers. Those are arrays: ``<field>`` holds the values of all samples end to end, and
``<field>_lengths``, int64 ``[samples]``, how many are of each sample, -1 for a field that is None.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from miles_core.debug.archive import read_archive, unreadable, write_archive
from miles_core.rollout.codec import decode_sample, encode_sample
from miles_core.samples import Sample

KIND = "rollout"
LISTS: dict[str, type] = {
    "prompt_ids": np.int64,
    "response_ids": np.int64,
    "loss_mask": np.int8,
    "rollout_log_probs": np.float64,
    "teacher_log_probs": np.float64,
}
"""Fields of a sample that are lists of numbers."""
ROUTES = "routed_experts"


@dataclass(frozen=True)
class SavedRollout:
    """A rollout from a file. ``metrics`` are those that were logged of it, ``rollout/`` and ``perf/``."""

    rollout_id: int | str
    samples: list[Sample]
    metrics: dict[str, float] = field(default_factory=dict)


def write_rollout(path: Path, rollout_id: int | str, samples: Sequence[Sample], metrics: Mapping[str, float] | None = None) -> None:
    """Write a rollout, or an evaluation (``rollout_id`` ``eval_<n>``).

    Raises:
        RunError: a sample holds something that is no plain data (M408).
    """
    arrays: dict[str, np.ndarray] = {}
    for name, kind in LISTS.items():
        arrays |= _column(name, [getattr(sample, name) for sample in samples], np.dtype(kind))
    arrays |= _column(ROUTES, [sample.routed_experts for sample in samples], np.dtype(np.int16))
    emptied: dict[str, Any] = dict.fromkeys((*LISTS, ROUTES))
    documents = [encode_sample(dataclasses.replace(sample, **emptied)) for sample in samples]
    document = {"rollout_id": rollout_id, "metrics": dict(metrics or {}), "samples": documents}
    write_archive(path, KIND, document, arrays)


def read_rollout(path: Path) -> SavedRollout:
    """Read what :func:`write_rollout` wrote.

    Raises:
        RunError: it cannot be read (M372).
    """
    document, arrays = read_archive(path, KIND)
    try:
        samples = [decode_sample(each) for each in document["samples"]]
        for name in LISTS:
            for sample, values in zip(samples, _split(arrays, name), strict=True):
                setattr(sample, name, None if values is None else values.tolist())
        for sample, values in zip(samples, _split(arrays, ROUTES), strict=True):
            sample.routed_experts = values
        return SavedRollout(document["rollout_id"], samples, document["metrics"])
    except (KeyError, TypeError, ValueError) as error:
        raise unreadable(path, KIND, f"{type(error).__name__}: {error}") from error


def _column(name: str, values: Sequence[Any], dtype: np.dtype[Any]) -> dict[str, np.ndarray]:
    found = [np.asarray(each, dtype) for each in values if each is not None]
    lengths = np.array([-1 if each is None else len(each) for each in values], np.int64)
    return {name: np.concatenate(found) if found else np.empty(0, dtype), f"{name}_lengths": lengths}


def _split(arrays: Mapping[str, np.ndarray], name: str) -> list[np.ndarray | None]:
    flat, lengths = arrays[name], arrays[f"{name}_lengths"]
    ends = np.cumsum(np.maximum(lengths, 0))
    if len(ends) and ends[-1] != len(flat):
        raise ValueError(f"{name} has {len(flat)} values for {ends[-1]}")
    return [
        None if length < 0 else flat[end - length : end].copy() for length, end in zip(lengths.tolist(), ends.tolist(), strict=True)
    ]

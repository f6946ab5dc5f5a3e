"""``--rollout-data-postprocess-path``: a function of all data of a rank's rows, called before the first optimizer step.

``rollout_data`` has a list per key, an entry per row: ``tokens`` (prompt and response ids), ``response_lengths``,
``sample_indices``, ``rewards`` (shaped), ``raw_reward``, ``truncated``, and float32 arrays of one number per response token:
``loss_masks``, ``advantages``, ``returns``, and whichever there are of ``log_probs``, ``old_log_probs``, ``ref_log_probs``,
``rollout_log_probs``, ``teacher_log_probs``, ``values``. Changes of ``advantages``, ``returns``, ``values`` and the log-probs
count; masks, tokens and rewards have done their work by then, and a change of a mask is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from miles_core.errors import RunError
from miles_core.training.table import RowTable

PostProcess = Callable[[int, dict[str, Any]], None]

CHANGEABLE = (
    *("advantages", "returns", "values", "log_probs", "old_log_probs", "ref_log_probs", "rollout_log_probs", "teacher_log_probs"),
)
"""Per-token arrays that the function may change, by their name in the trainer and in ``rollout_data``."""


def postprocess(function: PostProcess, rollout_id: int, table: RowTable, fields: dict[str, np.ndarray]) -> None:
    """Call the function and take over what it changed.

    Args:
        fields: flat per-token arrays, float32, ``[N + 1]``; changed ones are replaced.

    Raises:
        RunError: an array has another length or is not finite where the row is trained on, or a mask changed (M407).
    """
    data = _lists(table, fields)
    function(rollout_id, data)
    if not np.array_equal(_flat(data, "loss_masks", table), table.mask):
        raise _error("changed loss_masks", "mask whole samples with --rollout-sample-filter-path")
    for name in CHANGEABLE:
        if name not in fields:
            continue
        values = _flat(data, name, table)
        if not np.isfinite(values[(table.mask != 0) & np.isfinite(fields[name])]).all():
            raise _error(f"made {name} that are not finite", "give finite numbers where the mask is not 0")
        fields[name] = values


def _lists(table: RowTable, fields: Mapping[str, np.ndarray]) -> dict[str, Any]:
    rows = table.rows
    cuts = np.cumsum(table.response_lengths[:-1])
    data: dict[str, Any] = {
        "tokens": [row.tokens.copy() for row in rows],
        "response_lengths": [row.response_length for row in rows],
        "sample_indices": [row.index for row in rows],
        "rewards": [row.reward for row in rows],
        "raw_reward": [row.raw_reward for row in rows],
        "truncated": [row.truncated for row in rows],
    }
    for key, name in (("loss_masks", "mask"), *((name, name) for name in CHANGEABLE if name in fields)):
        data[key] = np.split(np.array(fields[name], np.float32), cuts)[:-1]
    return data


def _flat(data: Mapping[str, Any], name: str, table: RowTable) -> np.ndarray:
    """A key's arrays end to end, with the filler's 0."""
    fix = f"leave {name} a list with one array of numbers per row, one number per response token"
    try:
        parts = [np.asarray(part, np.float32) for part in data[name]]
    except (KeyError, TypeError, ValueError) as error:
        raise _error(f"left no usable {name}: {type(error).__name__}: {error}", fix) from error
    if [part.shape for part in parts] != [(length,) for length in table.response_lengths[:-1].tolist()]:
        raise _error(f"changed the lengths of {name}", fix)
    return np.concatenate([*parts, np.zeros(1, np.float32)])


def _error(what: str, fix: str) -> RunError:
    return RunError("M407", f"the function {what}", owner="--rollout-data-postprocess-path", fix=fix)

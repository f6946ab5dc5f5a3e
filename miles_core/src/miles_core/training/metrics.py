"""Metrics of a rollout as the trainer sees it: sums and counts over all ranks, never means of means."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from miles_core.protocols.backend import Parallel
from miles_core.training.reduce import all_sums, sample_weights
from miles_core.training.table import RowTable

TOKEN_METRICS = (
    *("log_probs", "ref_log_probs", "rollout_log_probs", "teacher_log_probs", "opd_reverse_kl"),
    *("advantages", "returns", "old_entropy", "ref_entropy", "values"),
)
"""Means over samples of each sample's mean over its unmasked tokens; samples without any are left out."""


def rollout_metrics(
    table: RowTable,
    fields: Mapping[str, np.ndarray],
    extra: Mapping[str, tuple[float, float]],
    parallel: Parallel,
    device: torch.device,
) -> dict[str, float]:
    """``rollout/<name>`` of the rows of all ranks. Collective.

    Args:
        table: this rank's rows.
        fields: per-token arrays by name, ``[N + 1]``; those of :data:`TOKEN_METRICS` are used.
        extra: sum and count of further metrics of this rank, which take the place of those of the same name. All ranks must
            give the same names.
    """
    found = {**_row_sums(table), **_token_sums(table, fields), **extra}
    sums = {f"{name} {part}": torch.tensor(value) for name, pair in found.items() for part, value in zip("sn", pair, strict=True)}
    totals = all_sums(sums, parallel, device)
    return {f"rollout/{name}": totals[f"{name} s"] / totals[f"{name} n"] for name in sorted(found) if totals[f"{name} n"]}


def _token_sums(table: RowTable, fields: Mapping[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    weights = sample_weights(table).astype(np.float64)
    samples = float((table.mask_sums > 0).sum())
    used = weights != 0
    sums = dict.fromkeys(TOKEN_METRICS, (0.0, 0.0))
    return sums | {name: (float(np.dot(fields[name][used], weights[used])), samples) for name in TOKEN_METRICS if name in fields}


def _row_sums(table: RowTable) -> dict[str, tuple[float, float]]:
    graded = [row for row in table.rows if not np.isnan(row.raw_reward)]
    size = float(table.size)
    return {
        "rewards": (sum(row.reward for row in graded), float(len(graded))),
        "raw_reward": (sum(row.raw_reward for row in graded), float(len(graded))),
        "response_lengths": (float(table.response_tokens), size),
        "total_lengths": (float(table.lengths[:-1].sum()), size),
        "truncated": (float(sum(row.truncated for row in table.rows)), size),
    }

"""Ragged training rows."""

from __future__ import annotations

import numpy as np

from miles_core.training.rows import TrainRow


def random_rows(
    count: int,
    *,
    seed: int = 0,
    vocabulary: int = 32,
    group_size: int = 4,
    longest_prompt: int = 6,
    longest_response: int = 9,
    rollout_log_probs: bool = True,
) -> list[TrainRow]:
    """Rows of unequal lengths with partial masks, every seventh of them failed and fully masked.

    Rewards are standard normal, log-probs uniform in [-4, -0.1].
    """
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        response = int(rng.integers(1, longest_response + 1))
        total = response + int(rng.integers(1, longest_prompt + 1))
        failed = index % 7 == 6
        mask = (rng.random(response) < 0.8).astype(np.float32)
        mask[-1] = 1.0
        reward = float(rng.normal())
        rows.append(
            TrainRow(
                index=index,
                group=index // group_size,
                tokens=rng.integers(0, vocabulary, total).astype(np.int32),
                response_length=response,
                mask=np.zeros_like(mask) if failed else mask,
                reward=0.0 if failed else reward,
                raw_reward=float("nan") if failed else reward,
                rollout_log_probs=rng.uniform(-4, -0.1, response).astype(np.float32) if rollout_log_probs else None,
                truncated=bool(rng.random() < 0.3),
                version=1,
            )
        )
    return rows

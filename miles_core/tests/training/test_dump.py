"""What ``--save-debug-train-data`` writes of a trainer's rollout."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from miles_core.config import DebugOptions
from miles_core.debug.train_file import read_training
from miles_core.debug.watch import TrainingWatch
from miles_core.options import Config
from miles_core.testing.random_rows import random_rows
from miles_core.training.split import split_rows


def test_training_data_of_every_token(tmp_path: Path, kit) -> None:
    """Of a rollout of one step, whose log-probs would else not be computed ahead."""
    template = str(tmp_path / "{rollout_id}-{rank}.npz")
    plain = kit.trainer()
    watch = TrainingWatch(Config.of(DebugOptions(save_debug_train_data=template)), tmp_path, 3, plain.backend.device)
    watched = kit.trainer(watch=watch)
    (batch,) = split_rows(random_rows(8, seed=2), data_size=1, steps=1, balance=False, rollout_id=5)
    reports = [trainer.train(batch).metrics_per_step[0] for trainer in (plain, watched)]
    assert abs(reports[0]["train/loss"] - reports[1]["train/loss"]) < 1e-6
    saved = read_training(tmp_path / "5-3.npz")
    tokens = sum(row.response_length for row in batch.rows)
    assert {"mask", "advantages", "returns", "log_probs", "old_log_probs"} <= saved.fields.keys()
    assert all(values.shape == (tokens,) for values in saved.fields.values())
    for number, row in enumerate(batch.rows):
        assert saved.of_row("mask", number).tolist() == row.mask.tolist()
        assert set(saved.of_row("advantages", number).tolist()) == {float(np.float32(row.reward))}

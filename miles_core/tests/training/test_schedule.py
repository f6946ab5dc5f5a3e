from __future__ import annotations

import pytest

from miles_core.config import TrainingOptions
from miles_core.training.schedule import learning_rate


def rates(steps: range, train_steps: int = 10, **options) -> list[float]:
    return [learning_rate(TrainingOptions(lr=1.0, **options), train_steps, step) for step in steps]


def test_constant_after_warm_up():
    assert rates(range(6), lr_warmup_iters=4) == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates(range(9, 12)) == [1.0, 1.0, 1.0]


def test_linear_ends_at_the_least_rate_and_stays_there():
    found = rates(range(13), lr_decay_style="linear", min_lr=0.2, lr_warmup_iters=2)
    assert found[:3] == [0.0, 0.5, 1.0]
    assert found[6] == pytest.approx(0.6)
    assert found[10:] == [0.2, 0.2, 0.2]


def test_cosine_is_half_way_at_half_time():
    found = rates(range(9), lr_decay_style="cosine", lr_decay_iters=8)
    assert found[0] == 1.0
    assert found[4] == pytest.approx(0.5)
    assert found[2] == pytest.approx(0.8535533905932737)
    assert found[8] == 0.0


def test_inverse_square_root_continues_the_warm_up():
    found = rates(range(17), train_steps=100, lr_decay_style="inverse-square-root", lr_warmup_iters=4)
    assert found[4] == 1.0
    assert found[16] == pytest.approx(0.5)


def test_fraction_replaces_the_number_of_warm_up_steps():
    assert rates(range(3), train_steps=8, lr_warmup_fraction=0.25, lr_warmup_iters=7) == [0.0, 0.5, 1.0]

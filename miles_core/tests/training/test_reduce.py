from __future__ import annotations

import numpy as np
import pytest
import torch

from miles_core.training.reduce import token_weights, weighted_sum
from miles_core.training.rows import TrainRow
from miles_core.training.split import count_step
from miles_core.training.table import RowTable


def row(*mask: float) -> TrainRow:
    return TrainRow(0, 0, np.zeros(len(mask) + 1, np.int32), len(mask), np.array(mask, np.float32), 0.0, 0.0)


def average(rows, terms, per_token) -> float:
    table = RowTable(rows)
    weights = token_weights(table, count_step(rows), per_token=per_token)[:-1]
    return float(weighted_sum(torch.tensor(terms, dtype=torch.float64), torch.from_numpy(weights)))


ROWS = [row(1, 1, 0), row(1, 1, 1, 1)]
POLICY_LOSS = [-1.2214028, -1.0, -0.36787944, 1.0, 0.8, 1.0, 1.6487213]
CLIPPED = [0, 0, 0, 0, 1, 0, 0]
PPO_KL = [-0.2, 0, 1, 0, 0.5, 0, -0.5]


@pytest.mark.parametrize(
    ("terms", "per_token", "wanted"),
    [
        (POLICY_LOSS, False, 0.00073946),
        (POLICY_LOSS, True, 0.37121971),
        (CLIPPED, False, 0.125),
        (CLIPPED, True, 0.16666667),
        (PPO_KL, False, -0.05),
        (PPO_KL, True, -0.03333333),
    ],
)
def test_known_averages(terms, per_token, wanted):
    assert average(ROWS, terms, per_token) == pytest.approx(wanted, abs=1e-7)


def test_a_fully_masked_sample_counts_as_one_sample_and_one_token():
    rows = [row(1, 1), row(0, 0, 0)]
    terms = [3.0, 3.0, float("nan"), float("inf"), 5.0]
    assert average(rows, terms, per_token=False) == pytest.approx(1.5)
    assert average(rows, terms, per_token=True) == pytest.approx(2.0)


def test_masked_infinities_pass_no_gradient():
    terms = torch.tensor([1.0, float("inf")], requires_grad=True)
    weighted_sum(terms, torch.tensor([0.5, 0.0])).backward()
    assert terms.grad.tolist() == [0.5, 0.0]

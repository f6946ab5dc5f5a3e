from __future__ import annotations

import torch

from miles_core.training import ragged

LENGTHS = (2, 0, 3, 1)
VALUES = torch.tensor([1.0, 2.0, float("nan"), 4.0, 5.0, 6.0])
MASK = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.5, 0.0])


def test_segment_ids_skip_samples_without_tokens():
    assert ragged.segment_ids(LENGTHS).tolist() == [0, 0, 2, 2, 2, 3]


def test_masked_sums_ignore_what_masked_tokens_hold():
    assert ragged.masked_sum(VALUES, MASK, LENGTHS).tolist() == [3, 0, 6.5, 0]


def test_masked_means_divide_by_at_least_one():
    assert torch.allclose(ragged.masked_mean(VALUES, MASK, LENGTHS), torch.tensor([1.5, 0, 6.5 / 1.5, 0]))


def test_broadcast_gives_each_token_its_sample_value():
    assert ragged.broadcast(torch.tensor([1.0, 2.0, 3.0, 4.0]), LENGTHS).tolist() == [1, 1, 3, 3, 3, 4]


def test_last_masked_finds_the_last_trained_token():
    assert ragged.last_masked(MASK, LENGTHS).tolist() == [1, -1, 4, -1]


def test_sums_pass_gradients():
    values = VALUES.nan_to_num().requires_grad_()
    (ragged.masked_sum(values, MASK, LENGTHS) * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert values.grad.tolist() == [1, 1, 0, 3, 1.5, 0]

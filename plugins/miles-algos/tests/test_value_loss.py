"""The critic's loss, against its formula."""

from __future__ import annotations

import math

import pytest
import torch

from miles_algos.losses.value_loss import ValueLoss
from miles_algos.options import ValueLossOptions
from miles_core.options import Config
from miles_core.protocols import LossInputs
from miles_core.testing import check_split_invariance


def value_loss(clip: float = 0.2) -> ValueLoss:
    return ValueLoss(Config.of(ValueLossOptions(value_clip=clip)))


def inputs(values, old, returns, mask) -> LossInputs:
    zeros = torch.zeros_like(values.detach())
    return LossInputs(
        log_probs=zeros, mask=mask, lengths=(len(zeros),), old_log_probs=zeros, values=values, old_values=old, returns=returns
    )


def oracle(value: float, old: float, wanted: float, clip: float) -> tuple[float, float, float]:
    """Loss, clip fraction and derivative of one token, in Python's double precision."""
    moved = min(max(value - old, -clip), clip)
    plain, clipped = (value - wanted) ** 2, (old + moved - wanted) ** 2
    inside = abs(value - old) < clip
    slope = 2 * (value - wanted) if plain >= clipped else (2 * (old + moved - wanted) if inside else 0.0)
    return max(plain, clipped), float(abs(value - old) > clip), slope


@pytest.mark.parametrize("clip", [0.05, 0.2, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_every_token_is_the_formula(ragged, clip, seed):
    batch = ragged(seed)
    values = (batch.entropy / 3).clone().requires_grad_()
    old, returns = values.detach() + batch.log_probs / 6 + 0.25, batch.advantages
    outputs = value_loss(clip)(inputs(values, old, returns, batch.mask))
    outputs.loss.sum().backward()
    for i, kept in enumerate(batch.mask.tolist()):
        wanted = oracle(values[i].item(), old[i].item(), returns[i].item(), clip) if kept else (0.0, 0.0, 0.0)
        found = outputs.loss[i].item(), outputs.metrics["value_clipfrac"][i].item(), values.grad[i].item()
        assert found == pytest.approx(wanted, abs=1e-12)
    assert torch.equal(outputs.metrics["value_loss"], outputs.loss.detach())


def test_known_numbers():
    double = torch.float64
    values = torch.tensor([0.5, 1.0, 0.05, -0.5], dtype=double)
    old = torch.tensor([0.4, 0.4, 0.0, 0.0], dtype=double)
    returns = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=double)
    outputs = value_loss()(inputs(values, old, returns, torch.ones(4, dtype=double)))
    # Within the clip; moved too far towards the return; within; moved too far away from it.
    assert outputs.loss.tolist() == pytest.approx([0.25, 0.16, 0.0025, 0.25])
    assert outputs.metrics["value_clipfrac"].tolist() == [0.0, 1.0, 0.0, 1.0]


def test_what_the_mask_hides_is_0_and_passes_no_gradient():
    values = torch.tensor([1.0, math.inf, 2.0], requires_grad=True)
    old = torch.tensor([0.9, 0.0, math.nan])
    outputs = value_loss()(inputs(values, old, torch.zeros(3), torch.tensor([1.0, 0.0, 0.0])))
    assert outputs.loss.tolist() == [1.0, 0.0, 0.0]
    outputs.loss.sum().backward()
    assert values.grad.tolist() == [2.0, 0.0, 0.0]
    broken = value_loss()(inputs(torch.tensor([math.nan]), torch.zeros(1), torch.zeros(1), torch.ones(1)))
    assert broken.loss.isnan().all()


def test_it_trains_the_same_however_its_batch_is_split():
    check_split_invariance(value_loss(), temperature=0.7)


def test_a_clip_of_0_is_refused():
    with pytest.raises(ValueError, match="value_clip"):
        value_loss(0.0)

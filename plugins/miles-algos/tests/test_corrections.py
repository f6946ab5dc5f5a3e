"""Corrections against slow oracles and hand-worked examples."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from miles_algos.corrections import Corrections
from miles_algos.corrections.weights import mismatch_ratio
from miles_algos.options import OpsmOptions, RejectionOptions, TisOptions
from miles_core.protocols import LossInputs
from miles_core.testing import config_of

GROUPS = (TisOptions, RejectionOptions, OpsmOptions)


def corrected(batch: LossInputs, policy: torch.Tensor, **options: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    return Corrections(config_of(GROUPS, **options))(policy, batch)


def example(mask: tuple[float, ...] = (1, 1, 1, 0), advantages: float = 1.0) -> LossInputs:
    """Train -1 everywhere; the engine said -1, -2, -0.2, -1."""
    train = torch.full((4,), -1.0, dtype=torch.float64)
    rollout = torch.tensor([-1, -2, -0.2, -1], dtype=torch.float64)
    return LossInputs(
        train,
        torch.tensor(mask, dtype=torch.float64),
        (4,),
        train,
        rollout_log_probs=rollout,
        advantages=torch.full((4,), advantages).double(),
    )


ONES = torch.ones(4, dtype=torch.float64)


def test_truncated_weights() -> None:
    terms, metrics = corrected(example(), ONES, use_tis=True, tis_clip=2.0)
    assert metrics["tis"][:3].tolist() == pytest.approx([1, math.e, math.exp(-0.8)])
    assert terms[:3].tolist() == pytest.approx([1, 2, 0.449329])
    assert metrics["tis_clipfrac"].tolist() == [0, 1, 0, 0]
    assert metrics["tis_abs"][:3].tolist() == pytest.approx([0, math.e - 1, 1 - math.exp(-0.8)])
    terms, _ = corrected(example(), ONES, use_tis=True, tis_clip=2.0, tis_clip_low=0.5)
    assert terms[:3].tolist() == pytest.approx([1, 2, 0.5])


def test_masked_weights() -> None:
    terms, metrics = corrected(example(), ONES, use_tis=True, tis_mode="mask", tis_clip=2.0, tis_clip_low=0.5)
    assert terms[:3].tolist() == [1, 0, 0]
    assert metrics["tis_clipfrac"].tolist() == [0, 1, 1, 0]


def test_weights_of_whole_responses() -> None:
    assert mismatch_ratio(example(), "sequence")[:3].tolist() == pytest.approx([math.exp(0.2)] * 3)
    assert mismatch_ratio(example(), "sequence")[0] == pytest.approx(1.2214, abs=1e-4)
    assert mismatch_ratio(example(), "geometric")[0] == pytest.approx(1.0689, abs=1e-4)
    with pytest.raises(ValueError, match="level"):
        mismatch_ratio(example(), "word")


def test_rejection() -> None:
    terms, metrics = corrected(example(), ONES, use_rs=True, rs_upper_bound=2.0)
    assert terms[:3].tolist() == [1, 0, 0], "0.449 is below 1 / 2"
    assert metrics["rs_masked_fraction"].tolist() == [0, 1, 1, 0]
    terms, _ = corrected(example(), ONES, use_rs=True, rs_upper_bound=2.0, rs_lower_bound=0.1)
    assert terms[:3].tolist() == [1, 0, 1]
    terms, _ = corrected(example(), ONES, use_rs=True, rs_level="sequence", rs_upper_bound=1.2)
    assert terms[:3].tolist() == [0, 0, 0]


def test_one_token_vetoes_its_response() -> None:
    terms, metrics = corrected(example(), ONES, use_rs=True, rs_upper_bound=100.0, rs_veto_threshold=0.5)
    assert terms[:3].tolist() == [0, 0, 0]
    assert metrics["rs_veto_fraction"].tolist() == [1, 1, 1, 0]
    terms, _ = corrected(example((1, 1, 0, 0)), ONES, use_rs=True, rs_upper_bound=100.0, rs_veto_threshold=0.5)
    assert terms[:2].tolist() == [1, 1], "the token is masked"


@pytest.mark.parametrize(
    ("new", "old", "advantage", "kept"), [(-2, -1, -1, 0), (-1, -2, -1, 1), (-2, -1, 1, 1), (-1, -1, -1, 1), (-2, -1, 0, 1)]
)
def test_off_policy_sequence_masking(new: float, old: float, advantage: float, kept: float) -> None:
    inputs = LossInputs(torch.tensor([new]), torch.ones(1), (1,), torch.tensor([old]), advantages=torch.tensor([float(advantage)]))
    terms, metrics = corrected(inputs, torch.ones(1), use_opsm=True)
    assert terms.tolist() == [kept]
    assert metrics["opsm_clipfrac"].tolist() == [1 - kept]


def test_the_mean_of_the_response_decides() -> None:
    new, old = torch.tensor([-2.0, -1.0, -9.0]), torch.tensor([-1.0, -1.9, -1.0])
    mask = torch.tensor([1.0, 1, 0])
    inputs = LossInputs(new, mask, (3,), old, advantages=torch.tensor([-1.0, 1.0, -1.0]))
    terms, metrics = corrected(inputs, torch.ones(3), use_opsm=True, opsm_delta=0.04)
    assert terms.tolist() == [0, 1, 1], "(1 - 0.9) / 2 is more than 0.04, and one token's advantage is positive"
    assert metrics["opsm_clipfrac"].tolist() == [1, 0, 0]
    assert corrected(inputs, torch.ones(3), use_opsm=True, opsm_delta=0.06)[0].tolist() == [1, 1, 1]


@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
@pytest.mark.parametrize("mode", ["truncate", "mask"])
@pytest.mark.parametrize("seed", range(4))
def test_everything_together_against_a_loop(ragged: Callable[[int], Any], seed: int, mode: str, level: str) -> None:
    batch = ragged(seed)
    rollout = batch.ref_log_probs
    inputs = LossInputs(
        *(batch.log_probs, batch.mask, batch.lengths, batch.old_log_probs), rollout_log_probs=rollout, advantages=batch.advantages
    )
    policy = batch.entropy * batch.mask
    options: dict[str, Any] = {
        "use_tis": True,
        "tis_level": level,
        "tis_mode": mode,
        "tis_clip": 1.8,
        "tis_clip_low": 0.3,
        "use_rs": True,
        "rs_level": level,
        "rs_upper_bound": 2.5,
        "rs_lower_bound": 0.2,
        "rs_veto_threshold": 0.08,
        "use_opsm": True,
        "opsm_delta": 0.1,
    }
    found, _ = corrected(inputs, policy, **options)
    wanted, start = [], 0
    for length in batch.lengths:
        span = range(start, start + length)
        start += length
        kept = [t for t in span if batch.mask[t]]
        gap = {t: float(batch.old_log_probs[t] - rollout[t]) for t in kept}
        total = sum(gap.values())
        moved = sum(float(batch.old_log_probs[t] - batch.log_probs[t]) for t in kept) / max(len(kept), 1)
        veto = any(math.exp(g) < 0.08 for g in gap.values())
        for t in span:
            if t not in gap:
                wanted.append(0.0)
                continue
            exponent = {"token": gap[t], "sequence": total, "geometric": total / len(kept)}[level]
            w = math.exp(min(max(exponent, -20), 20))
            weight = (w if 0.3 <= w <= 1.8 else 0.0) if mode == "mask" else min(max(w, 0.3), 1.8)
            value = float(policy[t]) * weight
            if (batch.advantages[t] < 0 and moved > 0.1) or not 0.2 <= w <= 2.5 or veto:
                value = 0.0
            wanted.append(value)
    assert found.tolist() == pytest.approx(wanted, abs=1e-12)


def test_equal_policies_need_no_correction() -> None:
    inputs = LossInputs(
        *(torch.full((3,), -1.0), torch.ones(3), (3,), torch.full((3,), -1.0)),
        rollout_log_probs=torch.full((3,), -1.0),
        advantages=-torch.ones(3),
    )
    options = {"use_tis": True, "use_rs": True, "rs_veto_threshold": 0.9, "use_opsm": True}
    terms, metrics = corrected(inputs, torch.arange(3.0), **options)
    assert terms.tolist() == [0, 1, 2]
    assert metrics["tis"].tolist() == [1, 1, 1]
    assert all(metrics[name].sum() == 0 for name in metrics if name != "tis")


def test_only_what_was_asked_for() -> None:
    none = Corrections(config_of(GROUPS))
    assert not none
    assert none.needs == frozenset()
    assert Corrections(config_of(GROUPS, use_opsm=True)).needs == frozenset()
    assert Corrections(config_of(GROUPS, use_tis=True)).needs == {"rollout_log_probs"}
    assert Corrections(config_of(GROUPS, use_rs=True)).needs == {"rollout_log_probs"}


def test_weights_pass_no_gradient() -> None:
    new = torch.tensor([-1.0, -1.0], requires_grad=True)
    inputs = LossInputs(new, torch.ones(2), (2,), new, rollout_log_probs=torch.tensor([-2.0, -0.5]), advantages=-torch.ones(2))
    terms, _ = corrected(inputs, new * 3, use_tis=True, use_rs=True, rs_upper_bound=9.0, use_opsm=True)
    (gradient,) = torch.autograd.grad(terms.sum(), new)
    assert gradient.tolist() == pytest.approx([3 * 2.0, 3 * math.exp(-0.5)])


@pytest.mark.parametrize("options", [{"use_tis": True, "tis_clip_low": 3.0}, {"use_rs": True, "rs_lower_bound": 3.0}])
def test_bounds_in_the_wrong_order_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="order"):
        Corrections(config_of(GROUPS, **options))

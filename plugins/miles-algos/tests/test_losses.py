"""The packaged policy losses against slow oracles written from the papers, in values and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from miles_algos.losses.cispo import Cispo
from miles_algos.losses.gspo_loss import GspoLoss
from miles_algos.losses.policy_loss import PolicyLoss
from miles_algos.losses.sapo import Sapo
from miles_algos.losses.sft_loss import SftLoss
from miles_algos.losses.value_loss import ValueLoss
from miles_algos.options import (
    ClipOptions,
    DualClipOptions,
    EntropyOptions,
    KlLossOptions,
    KlOptions,
    OpsmOptions,
    RejectionOptions,
    SoftGateOptions,
    TisOptions,
)
from miles_core.protocols import LossInputs
from miles_core.testing import check_split_invariance, config_of

GROUPS = (
    *(ClipOptions, DualClipOptions, SoftGateOptions, KlLossOptions, KlOptions, EntropyOptions),
    *(TisOptions, RejectionOptions, OpsmOptions),
)
LOSSES: dict[str, Any] = {"policy_loss": PolicyLoss, "gspo_loss": GspoLoss, "cispo": Cispo, "sapo": Sapo}
INF = math.inf


def made(name: str, **options: Any) -> Any:
    return LOSSES[name](config_of(GROUPS, **options))


def spans(lengths: tuple[int, ...]) -> list[range]:
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    return [range(end - length, end) for end, length in zip(ends, lengths, strict=True)]


def oracle(name: str, batch: Any, low: float, high: float, taus: tuple[float, float]) -> list[tuple[float, float]]:
    """``(loss, d loss / d log pi)`` of each token, one at a time, in Python's doubles.

    The derivative of a sequence-level loss is that of the sum over the response's tokens.
    """
    found = [(0.0, 0.0)] * sum(batch.lengths)
    for span in spans(batch.lengths):
        kept = [t for t in span if batch.mask[t]]
        mean = sum(float(batch.log_probs[t] - batch.old_log_probs[t]) for t in kept) / max(len(kept), 1)
        for t in kept:
            a, new, old = (float(x[t]) for x in (batch.advantages, batch.log_probs, batch.old_log_probs))
            rho = math.exp(mean if name == "gspo_loss" else new - old)
            if name == "cispo":
                weight = min(max(rho, low), high)
                found[t] = (-weight * a * new, -weight * a)
            elif name == "sapo":
                tau = taus[0] if a > 0 else taus[1]
                gate = 1 / (1 + math.exp(-tau * (rho - 1)))
                found[t] = (-4 / tau * gate * a, -4 * gate * (1 - gate) * rho * a)
            else:
                free = rho * a <= min(max(rho, low), high) * a
                found[t] = (-min(rho * a, min(max(rho, low), high) * a), -rho * a if free else 0.0)
        if name == "gspo_loss":
            # Each token's ratio is the response's: its gradient is the mean of all tokens' derivatives.
            shared = sum(found[t][1] for t in kept) / max(len(kept), 1)
            for t in kept:
                found[t] = (found[t][0], shared)
    return found


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("seed", range(6))
def test_values_and_gradients_are_those_of_the_papers(ragged: Callable[[int], Any], seed: int, name: str) -> None:
    batch = ragged(seed)
    options = {"eps_clip": 0.3, "eps_clip_high": 0.5} if name != "sapo" else {"sapo_tau_pos": 1.5, "sapo_tau_neg": 2.5}
    fn = made(name, **options)
    log_probs = batch.log_probs.clone().requires_grad_()
    out = fn(LossInputs(log_probs, batch.mask, batch.lengths, batch.old_log_probs, advantages=batch.advantages))
    wanted = oracle(name, batch, 0.7, 1.5, (1.5, 2.5))
    (gradient,) = torch.autograd.grad(out.loss.sum(), log_probs)
    assert out.loss.tolist() == pytest.approx([value for value, _ in wanted], abs=1e-12)
    assert gradient.tolist() == pytest.approx([slope for _, slope in wanted], abs=1e-12)
    assert not any(metric.requires_grad for metric in out.metrics.values())


def test_a_hand_worked_sequence_ratio() -> None:
    old_less_new = torch.tensor([-0.5, 0.0, -1.0])
    new = torch.full((3,), -1.0, requires_grad=True)
    mask = torch.tensor([1.0, 0, 1])
    batch = LossInputs(new, mask, (3,), new.detach() + old_less_new, advantages=torch.ones(3))
    out = made("gspo_loss", eps_clip=10.0, eps_clip_high=10.0)(batch)
    assert out.metrics["ppo_kl"].tolist() == [-0.75, 0, -0.75]
    assert out.loss.tolist() == pytest.approx([-math.exp(0.75), 0, -math.exp(0.75)])


def test_sequence_clips_are_narrow() -> None:
    new = torch.tensor([-1, -0.5, -2, -0.7, -1.2, -0.3, -0.9])
    old = torch.tensor([-1.2, -0.5, -1, -0.7, -0.7, -0.3, -1.4])
    mask = torch.tensor([1.0, 1, 0, 1, 1, 1, 1])
    advantages = torch.tensor([1.0] * 3 + [-1.0] * 4)
    out = made("gspo_loss", eps_clip=3e-4, eps_clip_high=4e-4)(LossInputs(new, mask, (3, 4), old, advantages=advantages))
    assert out.metrics["pg_loss"].tolist() == pytest.approx([-1.0004, -1.0004, 0, 1, 1, 1, 1], abs=1e-6)
    assert out.metrics["pg_clipfrac"].tolist() == [1, 1, 0, 0, 0, 0, 0]


CORRECTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "tis": {"use_tis": True, "tis_clip": 1.3, "tis_clip_low": 0.6},
    "sequence tis, masked": {"use_tis": True, "tis_level": "sequence", "tis_mode": "mask", "tis_clip": 5.0, "tis_clip_low": 0.2},
    "geometric rejection with veto": {"use_rs": True, "rs_level": "geometric", "rs_upper_bound": 1.5, "rs_veto_threshold": 0.05},
    "opsm": {"use_opsm": True, "opsm_delta": 0.0},
    "all": {
        "use_opsm": True,
        "opsm_delta": 0.01,
        "use_tis": True,
        "use_rs": True,
        "rs_upper_bound": 3.0,
        "use_kl_loss": True,
        "kl_loss_coef": 0.1,
        "kl_loss_type": "low_var_kl",
        "use_unbiased_kl": True,
        "entropy_coef": 0.01,
    },
}


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_do_not_depend_on_the_split(name: str, correction: str) -> None:
    check_split_invariance(made(name, **CORRECTIONS[correction]))


def test_those_of_the_others_do_not_either() -> None:
    check_split_invariance(SftLoss(config_of(())))
    check_split_invariance(ValueLoss(config_of(())))


@pytest.mark.parametrize("name", LOSSES)
def test_on_policy_the_gradient_is_the_policy_gradient(name: str) -> None:
    advantages = torch.tensor([1.5, -0.5, 0.0, 2.0, 2.0])
    new = torch.tensor([-1.0, -0.3, -2.0, -0.1, -4.0], requires_grad=True)
    out = made(name)(LossInputs(new, torch.ones(5), (3, 2), new.detach(), advantages=advantages))
    (gradient,) = torch.autograd.grad(out.loss.sum(), new)
    # One ratio for a response shares its tokens' advantages out.
    wanted = [*([1 / 3] * 3), 2.0, 2.0] if name == "gspo_loss" else advantages.tolist()
    assert (-gradient).tolist() == pytest.approx(wanted, abs=1e-6)
    assert out.metrics["ppo_kl"].abs().sum() == 0
    assert out.metrics.get("pg_clipfrac", torch.zeros(1)).sum() == 0
    if name == "sapo":
        assert out.metrics["sapo_gate"].tolist() == [1.0] * 5


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("name", LOSSES)
def test_degenerate_inputs_stay_finite(name: str, correction: str) -> None:
    fn = made(name, **CORRECTIONS[correction])
    values = [-INF, -1.0, -INF, -1.0, -400.0, -0.0]
    for signs in (1.0, -1.0):
        new = torch.tensor(values, dtype=torch.float64, requires_grad=True)
        other = torch.tensor([-1.0, -INF, -INF, -1.0, -1.0, -400.0], dtype=torch.float64)
        more = {"rollout_log_probs": other.flip(0), "ref_log_probs": other, "entropy": torch.ones(6, dtype=torch.float64)}
        given = {key: value for key, value in more.items() if key in fn.needs}
        batch = LossInputs(new, torch.ones(6).double(), (1, 5), other, advantages=torch.full((6,), signs).double(), **given)
        out = fn(batch)
        for key, metric in {"loss": out.loss, **out.metrics}.items():
            assert torch.isfinite(metric).all(), key
        (gradient,) = torch.autograd.grad(out.loss.sum(), new)
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("name", LOSSES)
def test_masked_tokens_count_for_nothing_whatever_they_hold(name: str, correction: str) -> None:
    fn = made(name, **CORRECTIONS[correction])

    def run(hidden: float) -> tuple[torch.Tensor, torch.Tensor]:
        new = torch.tensor([-1.0, hidden, -0.7, hidden, hidden], dtype=torch.float64, requires_grad=True)
        mask = torch.tensor([1.0, 0, 1, 0, 0], dtype=torch.float64)
        others = torch.tensor([-1.3, hidden, -0.4, hidden, hidden], dtype=torch.float64)
        advantages = torch.tensor([1.0, hidden, 1.0, hidden, hidden], dtype=torch.float64)
        given = {key: others for key in ("rollout_log_probs", "ref_log_probs", "entropy") if key in fn.needs}
        out = fn(LossInputs(new, mask, (3, 2), others, advantages=advantages, **given))
        assert all(metric[mask == 0].nan_to_num(nan=7).abs().max() <= 1 for metric in out.metrics.values())
        return out.loss.detach() * mask, torch.autograd.grad((out.loss * mask).sum(), new)[0]

    for bad in (math.nan, INF, -INF):
        for found, wanted in zip(run(bad), run(-2.0), strict=True):
            assert torch.equal(found, wanted)


@pytest.mark.parametrize("name", LOSSES)
def test_a_broken_model_is_not_hidden(name: str) -> None:
    new = torch.tensor([math.nan, -1.0])
    out = made(name)(LossInputs(new, torch.ones(2), (1, 1), -torch.ones(2), advantages=torch.ones(2)))
    assert torch.isnan(out.loss).tolist() == [True, False]


@pytest.mark.parametrize("name", LOSSES)
def test_zero_advantage_is_zero_loss_where_it_is_said_to_be(name: str) -> None:
    for correction, options in CORRECTIONS.items():
        fn = made(name, **options)
        assert fn.zero_advantage_is_zero_loss is (correction != "all")
        if correction == "all":
            continue
        new = torch.tensor([-1.0, -9.0, -0.2], requires_grad=True)
        given = {"rollout_log_probs": torch.tensor([-3.0, -0.1, -0.2])} if "rollout_log_probs" in fn.needs else {}
        out = fn(LossInputs(new, torch.ones(3), (2, 1), torch.tensor([-3.0, -0.1, -0.2]), advantages=torch.zeros(3), **given))
        assert out.loss.abs().tolist() == [0, 0, 0]
        assert torch.autograd.grad(out.loss.sum(), new)[0].abs().tolist() == [0, 0, 0]


def test_a_gate_without_slope_is_refused() -> None:
    with pytest.raises(ValueError, match="sapo_tau"):
        made("sapo", sapo_tau_neg=0.0)

"""Losses policy_loss and sft_loss against a slow oracle, golden vectors, and degenerate inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from miles_algos.losses.policy_loss import PolicyLoss
from miles_algos.losses.sft_loss import SftLoss
from miles_algos.options import ClipOptions, DualClipOptions, EntropyOptions, KlLossOptions, KlOptions
from miles_core.options import Config
from miles_core.protocols import LossInputs, LossOutputs
from miles_core.testing import config_of

INF = math.inf


GROUPS = (ClipOptions, DualClipOptions, KlLossOptions, KlOptions, EntropyOptions)


def loss(**options: Any) -> PolicyLoss:
    return PolicyLoss(config_of(GROUPS, **options))


def settings(**options: Any) -> Any:
    """The options with their defaults, as attributes."""
    return SimpleNamespace(**{o.field: v.value for o, v in config_of(GROUPS, **options).items()})


def inputs(new: list[float], old: list[float], advantages: list[float], **more: Any) -> LossInputs:
    fields = {name: torch.tensor(value, dtype=torch.float64) for name, value in more.items()}
    mask = fields.pop("mask", torch.ones(len(new), dtype=torch.float64))
    return LossInputs(
        log_probs=torch.tensor(new, dtype=torch.float64, requires_grad=True),
        mask=mask,
        lengths=(len(new),),
        old_log_probs=torch.tensor(old, dtype=torch.float64),
        advantages=torch.tensor(advantages, dtype=torch.float64),
        **fields,
    )


def gradient(out: LossOutputs, batch: LossInputs) -> list[float]:
    (grad,) = torch.autograd.grad(out.loss.sum(), batch.log_probs)
    return grad.tolist()  # type: ignore[no-any-return]


def oracle(batch: Any, o: Any) -> dict[str, list[float]]:
    """The formulas of the papers, one token at a time, in Python's doubles."""
    terms: dict[str, list[float]] = {"loss": [], "pg_loss": [], "pg_clipfrac": [], "ppo_kl": [], "kl_loss": [], "entropy_loss": []}
    high = o.eps_clip if o.eps_clip_high is None else o.eps_clip_high
    for i in range(sum(batch.lengths)):
        if batch.mask[i] == 0:
            for values in terms.values():
                values.append(0.0)
            continue
        new, old, ref, a = (float(x[i]) for x in (batch.log_probs, batch.old_log_probs, batch.ref_log_probs, batch.advantages))
        rho = math.exp(new - old)
        unclipped, clipped = rho * a, min(max(rho, 1 - o.eps_clip), 1 + high) * a
        objective = min(unclipped, clipped)
        if o.eps_clip_c is not None and a < 0:
            objective = max(objective, o.eps_clip_c * a)
        d = new - ref
        k3 = math.exp(ref - new) - 1 + d
        kl = {"k1": d, "k2": d * d / 2, "k3": k3, "low_var_kl": k3}[o.kl_loss_type]
        if o.use_unbiased_kl:
            kl *= rho
        if o.kl_loss_type == "low_var_kl":
            kl = min(max(kl, -10), 10)
        entropy = float(batch.entropy[i])
        terms["pg_loss"].append(-objective)
        terms["pg_clipfrac"].append(float(clipped < unclipped))
        terms["ppo_kl"].append(old - new)
        terms["kl_loss"].append(kl)
        terms["entropy_loss"].append(entropy)
        terms["loss"].append(-objective + (o.kl_loss_coef * kl if o.use_kl_loss else 0.0) - o.entropy_coef * entropy)
    return terms


OPTIONS = [
    {},
    {"eps_clip": 0.1, "eps_clip_high": 0.5},
    {"eps_clip_c": 1.5},
    *({"use_kl_loss": True, "kl_loss_coef": 0.3, "kl_loss_type": kind} for kind in ("k1", "k2", "k3", "low_var_kl")),
    {"use_kl_loss": True, "kl_loss_coef": 0.3, "kl_loss_type": "low_var_kl", "use_unbiased_kl": True},
    {"entropy_coef": 0.01},
    {"use_kl_loss": True, "kl_loss_coef": 0.3, "entropy_coef": 0.01, "eps_clip_c": 3.0},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("seed", range(6))
def test_matches_the_papers_token_by_token(ragged: Callable[[int], Any], seed: int, options: dict[str, Any]) -> None:
    batch = ragged(seed)
    fn = loss(**options)
    # Only what the loss says it needs is given, so that a missing name in ``needs`` fails here.
    optional = {name: getattr(batch, name) for name in ("ref_log_probs", "entropy", "advantages") if name in fn.needs}
    out = fn(LossInputs(batch.log_probs, batch.mask, batch.lengths, batch.old_log_probs, **optional))
    expected = oracle(batch, settings(**options))
    assert out.loss.tolist() == pytest.approx(expected.pop("loss"), abs=1e-12)
    for name, values in out.metrics.items():
        assert values.tolist() == pytest.approx(expected[name], abs=1e-12), name
        assert not values.requires_grad
    assert set(out.metrics) == {"pg_loss", "pg_clipfrac", "ppo_kl"} | {
        name for name, on in (("kl_loss", "use_kl_loss"), ("entropy_loss", "entropy_coef")) if options.get(on)
    }


NEW = [-1, -0.5, -2, -0.7, -1.2, -0.3, -0.9]
OLD = [-1.2, -0.5, -1, -0.7, -0.7, -0.3, -1.4]
REF = [-1.1, -0.6, -2, -0.7, -1, -0.2, -0.9]
SIGNS = [1, 1, 1, -1, -1, -1, -1]
MASK = [1, 1, 0, 1, 1, 1, 1]


def test_golden_vectors() -> None:
    fn = loss(eps_clip=0.2, eps_clip_high=0.28, use_kl_loss=True, kl_loss_type="low_var_kl")
    out = fn(inputs(NEW, OLD, SIGNS, ref_log_probs=REF, mask=[1] * 7))
    assert out.metrics["pg_loss"].tolist() == pytest.approx([-1.22140, -1, -0.36788, 1, 0.8, 1, 1.64872], abs=5e-6)

    out = fn(inputs(NEW, OLD, SIGNS, ref_log_probs=REF, mask=MASK))
    terms = {"loss": out.loss.detach(), **out.metrics}

    def per_sample(x: torch.Tensor) -> float:
        return float(x[:3].sum() / 2 + x[3:].sum() / 4) / 2

    def per_token(x: torch.Tensor) -> float:
        return float(x.sum() / 6)

    assert {k: per_sample(v) for k, v in terms.items()} == pytest.approx(
        {"loss": 0.00073946, "pg_loss": 0.00073946, "pg_clipfrac": 0.125, "ppo_kl": -0.05, "kl_loss": 0.00574041}, abs=5e-8
    )
    assert {k: per_token(v) for k, v in terms.items()} == pytest.approx(
        {"loss": 0.37121971, "pg_loss": 0.37121971, "pg_clipfrac": 1 / 6, "ppo_kl": -0.03333333, "kl_loss": 0.00604141}, abs=5e-8
    )


def test_hand_worked_clipping() -> None:
    ratios, advantages = [1.5, 0.5, 1.5, 0.5, 5.0], [1, 1, -1, -1, -1]
    batch = inputs([math.log(r) for r in ratios], [0.0] * 5, advantages)
    out = loss(eps_clip=0.2, eps_clip_high=0.28)(batch)
    assert out.loss.tolist() == pytest.approx([-1.28, -0.5, 1.5, 0.8, 5.0])
    assert out.metrics["pg_clipfrac"].tolist() == [1, 0, 0, 1, 0]
    # d(-rho A)/d log pi = -rho A where the ratio is free, 0 where it is clipped.
    assert gradient(out, batch) == pytest.approx([0, -0.5, 1.5, 0, 5.0])

    dual = loss(eps_clip=0.2, eps_clip_high=0.28, eps_clip_c=3.0)(batch)
    assert dual.loss.tolist() == pytest.approx([-1.28, -0.5, 1.5, 0.8, 3.0])
    assert gradient(dual, batch) == pytest.approx([0, -0.5, 1.5, 0, 0])


@pytest.mark.parametrize(
    ("kind", "unbiased", "expected"),
    [
        ("k1", False, [0.5, -1, 0]),
        ("k2", False, [0.125, 0.5, 0]),
        ("k3", False, [0.106531, 0.718282, 0]),
        ("k3", True, [0.117735, 0.718282, 0]),
    ],
)
def test_hand_worked_kl(kind: str, unbiased: bool, expected: list[float]) -> None:
    fn = loss(use_kl_loss=True, kl_loss_coef=1.0, kl_loss_type=kind, use_unbiased_kl=unbiased)
    out = fn(inputs([-1, -2, -0.5], [-1.1, -2, -0.9], [0, 0, 0], ref_log_probs=[-1.5, -1, -0.5]))
    assert out.loss.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("kind", "expected"), [("k3", 8093.08), ("low_var_kl", 10)])
def test_far_from_the_reference(kind: str, expected: float) -> None:
    out = loss(use_kl_loss=True, kl_loss_type=kind)(inputs([-10], [-10], [0], ref_log_probs=[-1]))
    assert out.metrics["kl_loss"].tolist() == pytest.approx([expected], rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "unbiased", "expected"),
    [
        ("k1", False, 1.0),
        ("k2", False, 0.5),
        ("k3", False, 1 - math.exp(-0.5)),
        # On policy the weight is 1 and its gradient adds the estimate itself.
        ("k1", True, 1.0 + 0.5),
        ("k3", True, 1 - math.exp(-0.5) + math.exp(-0.5) - 1 + 0.5),
    ],
)
def test_gradient_of_the_kl_estimators(kind: str, unbiased: bool, expected: float) -> None:
    fn = loss(use_kl_loss=True, kl_loss_coef=2.0, kl_loss_type=kind, use_unbiased_kl=unbiased)
    batch = inputs([-1.0], [-1.0], [0.0], ref_log_probs=[-1.5])
    assert gradient(fn(batch), batch) == pytest.approx([2 * expected])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradients_are_those_of_finite_differences(ragged: Callable[[int], Any], options: dict[str, Any]) -> None:
    batch = ragged(1)
    fn = loss(**options)

    def total(log_probs: torch.Tensor) -> torch.Tensor:
        return fn(
            LossInputs(
                log_probs,
                batch.mask,
                batch.lengths,
                batch.old_log_probs,
                advantages=batch.advantages,
                ref_log_probs=batch.ref_log_probs,
                entropy=batch.entropy,
            )
        ).loss.sum()

    assert torch.autograd.gradcheck(total, (batch.log_probs.requires_grad_(),), eps=1e-6, atol=1e-5)


def test_on_policy_the_gradient_is_the_policy_gradient() -> None:
    """Ratio 1 lies on neither clip: nothing is clipped, no KL, and the gradient is -A exactly."""
    for eps in (0.2, 0.0):
        batch = inputs([-1.0, -0.3, -2.0], [-1.0, -0.3, -2.0], [1.5, -0.5, 0.0])
        out = loss(eps_clip=eps)(batch)
        assert out.metrics["ppo_kl"].abs().sum() == 0
        assert out.metrics["pg_clipfrac"].sum() == 0
        assert gradient(out, batch) == [-1.5, 0.5, 0.0]


def test_entropy_is_a_bonus_and_passes_gradient() -> None:
    batch = inputs([-1.0, -1.0], [-1.0, -1.0], [0.0, 0.0], entropy=[0.7, 5.0], mask=[1, 0])
    assert batch.entropy is not None
    batch.entropy.requires_grad_()
    out = loss(entropy_coef=0.1)(batch)
    assert out.loss.tolist() == pytest.approx([-0.07, 0])
    (grad,) = torch.autograd.grad(out.loss.sum(), batch.entropy)
    assert grad.tolist() == pytest.approx([-0.1, 0])


FULL = {"use_kl_loss": True, "kl_loss_coef": 0.1, "entropy_coef": 0.1, "use_unbiased_kl": True}


@pytest.mark.parametrize("kind", ["k1", "k2", "k3", "low_var_kl"])
def test_infinite_log_probs_stay_finite(kind: str) -> None:
    new, old, ref = [-INF, -1, -INF, -1, -400], [-1, -INF, -INF, -1, -1], [-1, -1, -INF, -INF, -1]
    for signs in ([1.0] * 5, [-1.0] * 5):
        batch = inputs(new, old, signs, ref_log_probs=ref, entropy=[1.0] * 5)
        out = loss(**FULL, kl_loss_type=kind)(batch)
        for name, values in {"loss": out.loss, **out.metrics}.items():
            assert torch.isfinite(values).all(), name
        assert all(math.isfinite(g) for g in gradient(out, batch))


def test_masked_tokens_are_zero_whatever_they_hold() -> None:
    bad = [math.nan, -INF, INF, math.nan]
    batch = inputs(bad, bad[::-1], bad, ref_log_probs=bad, entropy=bad, mask=[0] * 4)
    out = loss(**FULL, eps_clip_c=2.0)(batch)
    for values in (out.loss, *out.metrics.values()):
        assert values.abs().tolist() == [0.0] * 4
    assert gradient(out, batch) == [0.0] * 4


def test_a_broken_model_is_not_hidden() -> None:
    out = loss()(inputs([math.nan, -1.0], [-1.0, -1.0], [1.0, 1.0]))
    assert torch.isnan(out.loss).tolist() == [True, False]


def test_needs_follow_the_options() -> None:
    assert loss().needs == {"old_log_probs", "advantages"}
    assert loss(use_kl_loss=True).needs == {"old_log_probs", "advantages", "ref_log_probs"}
    assert loss(entropy_coef=-0.1).needs == {"old_log_probs", "advantages", "entropy"}


def test_zero_advantage_is_zero_loss() -> None:
    assert loss().zero_advantage_is_zero_loss
    assert not loss(use_kl_loss=True).zero_advantage_is_zero_loss
    assert not loss(entropy_coef=0.1).zero_advantage_is_zero_loss
    batch = inputs([-1.0, -9.0], [-3.0, -0.1], [0.0, 0.0])
    out = loss(eps_clip_c=2.0)(batch)
    assert out.loss.abs().tolist() == [0, 0]
    assert gradient(out, batch) == [0, 0]


def test_a_dual_clip_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="eps_clip_c"):
        loss(eps_clip_c=1.0)


def test_single_precision_in_single_precision_out() -> None:
    x = torch.tensor([-1.0, -2.0], requires_grad=True)
    out = loss()(LossInputs(x, torch.ones(2), (2,), x.detach(), advantages=torch.ones(2)))
    assert {out.loss.dtype} | {v.dtype for v in out.metrics.values()} == {torch.float32}


def test_sft_loss_is_the_negative_log_prob() -> None:
    fn = SftLoss(Config([]))
    x = torch.tensor([-1.0, -INF, -0.25], requires_grad=True)
    out = fn(LossInputs(x, torch.tensor([1.0, 0.0, 1.0]), (3,), x.detach()))
    assert out.loss.tolist() == [1.0, 0.0, 0.25]
    out.loss.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [-1.0, 0.0, -1.0]
    assert out.metrics == {}
    assert fn.needs == frozenset()

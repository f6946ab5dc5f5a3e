"""Every policy loss with corrections, KL and entropy terms together, against one oracle: losses, and gradients by differences.

The oracle is written from the papers in Python's doubles, a token at a time. What a paper holds constant is computed from the
log-probs as they are, the rest from log-probs that are moved a little to differentiate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from miles_algos.losses.cispo import Cispo
from miles_algos.losses.gspo_loss import GspoLoss
from miles_algos.losses.policy_loss import PolicyLoss
from miles_algos.losses.sapo import Sapo
from miles_algos.losses.sft_loss import SftLoss
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
from miles_core.testing import config_of
from miles_core.training.checks import zero_metrics

GROUPS = (
    *(ClipOptions, DualClipOptions, SoftGateOptions, KlLossOptions, KlOptions, EntropyOptions),
    *(TisOptions, RejectionOptions, OpsmOptions),
)
LOSSES: dict[str, Any] = {"policy_loss": PolicyLoss, "gspo_loss": GspoLoss, "cispo": Cispo, "sapo": Sapo}
DEFAULTS: dict[str, Any] = {option.field: value.value for option, value in config_of(GROUPS).items()}

CLIPS = {"eps_clip": 0.2, "eps_clip_high": 0.28, "eps_clip_c": 1.4, "sapo_tau_pos": 1.5, "sapo_tau_neg": 2.5}
KL = {"use_kl_loss": True, "kl_loss_coef": 0.3}
TIS = {"use_tis": True, "tis_clip": 1.8, "tis_clip_low": 0.4}
REJECTION = {"use_rs": True, "rs_upper_bound": 2.5, "rs_lower_bound": 0.3}
CASES: dict[str, dict[str, Any]] = {
    "nothing": {},
    **{kind: {**KL, "kl_loss_type": kind} for kind in ("k1", "k2", "k3", "low_var_kl")},
    **{f"unbiased {kind}": {**KL, "kl_loss_type": kind, "use_unbiased_kl": True} for kind in ("k1", "k2", "k3", "low_var_kl")},
    **{f"tis of a {level}": {**TIS, "tis_level": level} for level in ("token", "sequence", "geometric")},
    **{f"masked tis of a {level}": {**TIS, "tis_level": level, "tis_mode": "mask"} for level in ("token", "sequence", "geometric")},
    **{f"rejection of a {level}": {**REJECTION, "rs_level": level} for level in ("token", "sequence", "geometric")},
    "veto": {"use_rs": True, "rs_upper_bound": 1e6, "rs_lower_bound": 0.0, "rs_veto_threshold": 0.2},
    "opsm": {"use_opsm": True, "opsm_delta": 0.05},
}
CASES["all"] = {
    **(CASES["opsm"] | CASES["masked tis of a token"] | CASES["rejection of a geometric"] | CASES["unbiased k3"]),
    "rs_veto_threshold": 0.08,
    "entropy_coef": 0.02,
}


def ratio(exponents: dict[int, float], level: str, t: int) -> float:
    """The ratio of a token, of the response that it is in, or the mean of that."""
    total = sum(exponents.values())
    return math.exp({"token": exponents[t], "sequence": total, "geometric": total / len(exponents)}[level])


def oracle(name: str, batch: Any, rollout: Sequence[float], new: Sequence[float], options: dict[str, Any]) -> list[float]:
    """The loss of every token; ``new`` is what is differentiated."""
    o = DEFAULTS | options
    low, high = 1 - o["eps_clip"], 1 + o["eps_clip_high"]
    found, start = [0.0] * sum(batch.lengths), 0
    for length in batch.lengths:
        kept = [t for t in range(start, start + length) if batch.mask[t]]
        start += length
        here = {t: float(batch.log_probs[t]) for t in kept}
        old, ref = ({t: float(values[t]) for t in kept} for values in (batch.old_log_probs, batch.ref_log_probs))
        mismatch = {t: old[t] - rollout[t] for t in kept}
        moved = {t: new[t] - old[t] for t in kept}
        behind = sum(old[t] - here[t] for t in kept) / max(len(kept), 1)
        for t in kept:
            a = float(batch.advantages[t])
            rho = ratio(moved, "geometric" if name == "gspo_loss" else "token", t)
            if name == "cispo":
                term = -min(max(math.exp(here[t] - old[t]), low), high) * a * new[t]
            elif name == "sapo":
                tau = o["sapo_tau_pos"] if a > 0 else o["sapo_tau_neg"]
                term = -4 / tau / (1 + math.exp(-tau * (rho - 1))) * a
            else:
                term = -min(rho * a, min(max(rho, low), high) * a)
                if name == "policy_loss" and a < 0:
                    term = min(term, -o["eps_clip_c"] * a)
            if o["use_opsm"] and a < 0 and behind > o["opsm_delta"]:
                term = 0.0
            if o["use_tis"]:
                w = ratio(mismatch, o["tis_level"], t)
                cut = min(max(w, o["tis_clip_low"]), o["tis_clip"])
                term *= cut if o["tis_mode"] == "truncate" else w if cut == w else 0
            if o["use_rs"]:
                inside = o["rs_lower_bound"] <= ratio(mismatch, o["rs_level"], t) <= o["rs_upper_bound"]
                veto = o["rs_veto_threshold"] is not None and any(math.exp(g) < o["rs_veto_threshold"] for g in mismatch.values())
                term *= inside and not veto
            if o["use_kl_loss"]:
                d = new[t] - ref[t]
                k3 = math.exp(-d) - 1 + d
                kl = {"k1": d, "k2": d * d / 2, "k3": k3, "low_var_kl": k3}[o["kl_loss_type"]]
                kl *= math.exp(moved[t]) if o["use_unbiased_kl"] else 1
                term += o["kl_loss_coef"] * (min(max(kl, -10), 10) if o["kl_loss_type"] == "low_var_kl" else kl)
            found[t] = term - o["entropy_coef"] * float(batch.entropy[t])
    return found


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_are_those_of_the_papers(ragged: Callable[[int], Any], name: str, case: str) -> None:
    options = CLIPS | CASES[case]
    fn = LOSSES[name](config_of(GROUPS, **options))
    changed = False
    for seed in (1, 3, 8):
        batch = ragged(seed)
        rollout = -3 * torch.rand(len(batch.mask), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        # Only what the loss says it needs is given, so that a missing name in ``needs`` fails here.
        more = {"rollout_log_probs": rollout, "ref_log_probs": batch.ref_log_probs, "entropy": batch.entropy}
        given = {key: value for key, value in more.items() if key in fn.needs}
        log_probs = batch.log_probs.clone().requires_grad_()
        inputs = LossInputs(log_probs, batch.mask, batch.lengths, batch.old_log_probs, advantages=batch.advantages, **given)
        out = fn(inputs)
        new = batch.log_probs.tolist()
        wanted = oracle(name, batch, rollout.tolist(), new, options)
        assert out.loss.tolist() == pytest.approx(wanted, abs=1e-11)
        (gradient,) = torch.autograd.grad(out.loss.sum(), log_probs)
        step = 1e-6
        for t in range(len(new)):
            up, down = (sum(oracle(name, batch, rollout.tolist(), moved, options)) for moved in nudged(new, t, step))
            assert float(gradient[t]) == pytest.approx((up - down) / (2 * step), abs=1e-6), (seed, t)
        changed |= wanted != oracle(name, batch, rollout.tolist(), new, CLIPS)
    assert changed or case == "nothing", "the batches show nothing of this case"


def nudged(values: list[float], at: int, step: float) -> tuple[list[float], list[float]]:
    """Two copies with one value moved, up and down."""
    return [v + step * (i == at) for i, v in enumerate(values)], [v - step * (i == at) for i, v in enumerate(values)]


@pytest.mark.parametrize("seed", range(4))
def test_the_likelihood_of_ragged_batches(ragged: Callable[[int], Any], seed: int) -> None:
    batch = ragged(seed)
    log_probs = batch.log_probs.clone().requires_grad_()
    out = SftLoss(config_of(()))(LossInputs(log_probs, batch.mask, batch.lengths, batch.old_log_probs))
    wanted = [-float(x) if m else 0.0 for x, m in zip(batch.log_probs, batch.mask, strict=True)]
    assert out.loss.tolist() == wanted
    assert torch.equal(torch.autograd.grad(out.loss.sum(), log_probs)[0], -batch.mask)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", LOSSES)
def test_where_policies_agree_corrections_do_nothing(name: str, case: str) -> None:
    """The first optimizer step, of an engine that computes what the trainer does: ratios 1, KL 0, nothing clipped or left out."""
    fn = LOSSES[name](config_of(GROUPS, **(CLIPS | CASES[case])))
    log_probs = torch.tensor([-0.1, -2.0, -9.0, -0.7], requires_grad=True)
    same = log_probs.detach()
    given = {key: same for key in ("rollout_log_probs", "ref_log_probs") if key in fn.needs}
    given |= {"entropy": torch.zeros(4)} if "entropy" in fn.needs else {}
    advantages = torch.tensor([1.0, 1.0, -2.0, -2.0])
    out = fn(LossInputs(log_probs, torch.ones(4), (2, 2), same, advantages=advantages, **given))
    ones = {name: value for name, value in out.metrics.items() if name in ("ois", "tis", "sapo_gate")}
    zeros = {name: value for name, value in out.metrics.items() if name not in (*ones, "pg_loss")}
    assert all(torch.equal(value, torch.ones(4)) for value in ones.values())
    assert not any(value.any() for value in zeros.values()), zeros
    (gradient,) = torch.autograd.grad(out.loss.sum(), log_probs)
    # A penalty by k1 has a gradient on policy, one weighted by the ratio the same; those of the others start at 0.
    push = 0.3 if "k1" in case else 0.0
    assert gradient.tolist() == pytest.approx([push - a for a in advantages.tolist()], abs=1e-5)


def test_metrics_that_zero_advantages_leave_at_zero() -> None:
    """A sample whose advantages are 0 is not computed: its corrections must not be taken for 0."""
    for name, make in LOSSES.items():
        for case, options in CASES.items():
            fn = make(config_of(GROUPS, **(CLIPS | options)))
            if fn.zero_advantage_is_zero_loss:
                found = zero_metrics(fn)
                zero = {"pg_loss", "opsm_clipfrac"} | ({"pg_clipfrac"} if name != "cispo" else set())
                assert found <= zero, (name, case, found - zero)
                assert "pg_loss" in found

"""Every advantage estimator against a slow float64 oracle of its paper's formula, and examples worked by hand."""

from __future__ import annotations

import importlib
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from miles_algos import plugin
from miles_core.plugins.records import option_groups
from miles_core.protocols import AdvantageInputs
from miles_core.testing import config_of

RECORDS = {record.name: record for record in plugin.miles_advantage()}
SEEDS = range(25)
KINDS = ("k1", "k2", "k3", "low_var_kl")


def estimator(name: str, **options: Any) -> Any:
    record = RECORDS[name]
    module, _, attribute = record.create.partition(":")
    return getattr(importlib.import_module(module), attribute)(config_of(option_groups(record), **options))


@dataclass(frozen=True)
class Row:
    """One sample, in plain numbers."""

    reward: float
    group: int
    mask: list[int]
    old: list[float]
    ref: list[float]
    teacher: list[float]
    values: list[float]


def random_rows(seed: int) -> list[Row]:
    """1 to 8 samples of 0 to 12 tokens, some masked, some wholly, in groups that are short and interleaved."""
    rng = random.Random(seed)
    rows = []
    for _ in range(rng.randint(1, 8)):
        n = rng.choice([0, 1, 1, 2, 3, 5, 8, 12])
        mask = [0] * n if rng.random() < 0.15 else [int(rng.random() < 0.75) for _ in range(n)]
        old, ref, teacher = ([-rng.expovariate(0.7) for _ in range(n)] for _ in range(3))
        reward = rng.choice([0.0, 1.0, rng.gauss(0, 2)])
        rows.append(Row(reward, rng.randint(0, 2), mask, old, ref, teacher, [rng.gauss(0, 1) for _ in range(n)]))
    return rows


def inputs_of(rows: list[Row], needs: frozenset[str], shaped: list[float]) -> AdvantageInputs:
    """The tensors that an estimator gets: no more than it needs."""

    def flat(name: str) -> torch.Tensor:
        return torch.tensor([x for row in rows for x in getattr(row, name)], dtype=torch.float32)

    names = {"old_log_probs": "old", "ref_log_probs": "ref", "teacher_log_probs": "teacher", "values": "values"}
    given = {name: flat(names[name]) for name in needs}
    lengths = tuple(len(row.mask) for row in rows)
    return AdvantageInputs(rewards=torch.tensor(shaped, dtype=torch.float32), mask=flat("mask"), lengths=lengths, **given)


def run(made: Any, rows: list[Row]) -> tuple[list[float], list[float]]:
    shaped = made.shape_rewards([row.reward for row in rows], [row.group for row in rows])
    out = made(inputs_of(rows, made.needs, shaped))
    assert out.advantages.dtype == out.returns.dtype == torch.float32
    return out.advantages.tolist(), out.returns.tolist()


def kl(kind: str, old: float, ref: float) -> float:
    d = old - ref
    k3 = math.exp(-d) - 1 + d
    return {"k1": d, "k2": d * d / 2, "k3": k3, "low_var_kl": min(max(k3, -10.0), 10.0)}[kind]


def siblings(rows: list[Row], row: Row) -> list[float]:
    return [other.reward for other in rows if other.group == row.group]


def mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)


def grpo_reward(rows: list[Row], row: Row, options: dict[str, Any]) -> float:
    own = siblings(rows, row)
    if options.get("disable_rewards_normalization"):
        return row.reward
    if len(own) == 1:
        return 0.0
    deviation = row.reward - mean(own)
    if options.get("disable_grpo_std_normalization"):
        return deviation
    std = math.sqrt(sum((r - mean(own)) ** 2 for r in own) / (len(own) - 1))
    return deviation / (std + 1e-6)


def constant(reward: Callable[[list[Row], Row, dict[str, Any]], float]) -> Callable[..., tuple[list[float], list[float]]]:
    def expected(rows: list[Row], options: dict[str, Any]) -> tuple[list[float], list[float]]:
        values = [reward(rows, row, options) for row in rows for _ in row.mask]
        return values, values

    return expected


def leave_one_out(rows: list[Row], options: dict[str, Any]) -> tuple[list[float], list[float]]:
    found = []
    for i, row in enumerate(rows):
        others = [other.reward for j, other in enumerate(rows) if other.group == row.group and j != i]
        reward = row.reward - (mean(others) if others else row.reward)
        if options.get("disable_rewards_normalization"):
            reward = row.reward
        for t in range(len(row.mask)):
            penalty = sum(kl(options["kl_loss_type"], row.old[s], row.ref[s]) for s in range(t, len(row.mask)) if row.mask[s])
            found.append(reward - options["kl_coef"] * penalty)
    return found, found


def baseline(rows: list[Row], options: dict[str, Any]) -> tuple[list[float], list[float]]:
    found = []
    for row in rows:
        for t, m in enumerate(row.mask):
            penalty = kl(options["kl_loss_type"], row.old[t], row.ref[t]) if m else 0.0
            found.append(row.reward - mean(siblings(rows, row)) - options["kl_coef"] * penalty)
    return found, found


def plus_plus(rows: list[Row], options: dict[str, Any]) -> tuple[list[float], list[float]]:
    found = []
    for row in rows:
        last = max((t for t, m in enumerate(row.mask) if m), default=None)
        later, own = 0.0, []
        for t in reversed(range(len(row.mask))):
            here = -options["kl_coef"] * kl(options["kl_loss_type"], row.old[t], row.ref[t])
            later = here + (row.reward if t == last else 0.0) + options["gamma"] * later
            own.append(later)
        found += own[::-1]
    return found, found


def gae(rows: list[Row], options: dict[str, Any]) -> tuple[list[float], list[float]]:
    advantages, returns = [], []
    for row in rows:
        own = [0.0] * len(row.mask), [0.0] * len(row.mask)
        kept = [t for t, m in enumerate(row.mask) if m]
        value_after, advantage_after = 0.0, 0.0
        for t in reversed(kept):
            reward = -options["kl_coef"] * kl(options["kl_loss_type"], row.old[t], row.ref[t])
            reward += row.reward if t == kept[-1] else 0.0
            delta = reward + options["gamma"] * value_after - row.values[t]
            advantage_after = delta + options["gamma"] * options["lambd"] * advantage_after
            value_after = row.values[t]
            own[0][t], own[1][t] = advantage_after, advantage_after + row.values[t]
        advantages += own[0]
        returns += own[1]
    return advantages, returns


def distillation(rows: list[Row], options: dict[str, Any]) -> tuple[list[float], list[float]]:
    found = [(row.teacher[t] - row.old[t]) if m else 0.0 for row in rows for t, m in enumerate(row.mask)]
    return found, found


ORACLES: dict[str, Callable[..., tuple[list[float], list[float]]]] = {
    "grpo": constant(grpo_reward),
    "gspo": constant(grpo_reward),
    "on_policy_distillation": distillation,
    "ppo": gae,
    "reinforce_plus_plus": plus_plus,
    "reinforce_plus_plus_baseline": baseline,
    "rloo": leave_one_out,
}
GROUPED = [{}, {"disable_grpo_std_normalization": True}, {"disable_rewards_normalization": True}]
PENALISED = [{"kl_coef": coef, "kl_loss_type": kind} for coef, kind in [(0.0, "k1"), *((0.3, kind) for kind in KINDS)]]
CASES = [
    *((name, options) for name in ("grpo", "gspo") for options in GROUPED),
    ("on_policy_distillation", {}),
    *(
        ("ppo", {**options, "gamma": gamma, "lambd": lambd})
        for options in PENALISED
        for gamma, lambd in ((1.0, 1.0), (0.9, 0.95), (0.9, 0.0), (0.0, 1.0))
    ),
    *(("reinforce_plus_plus", {**options, "gamma": gamma}) for options in PENALISED for gamma in (1.0, 0.9, 0.0)),
    *(("reinforce_plus_plus_baseline", options) for options in PENALISED),
    *(("rloo", options) for options in [*PENALISED, {**PENALISED[2], "disable_rewards_normalization": True}]),
]


def test_every_estimator_has_an_oracle() -> None:
    assert sorted(ORACLES) == sorted(RECORDS) == sorted({name for name, _ in CASES})


@pytest.mark.parametrize(("name", "options"), CASES, ids=[f"{name}-{i}" for i, (name, _) in enumerate(CASES)])
def test_against_the_oracle(name: str, options: dict[str, Any]) -> None:
    for seed in SEEDS:
        rows = random_rows(seed)
        advantages, returns = run(estimator(name, **options), rows)
        expected = ORACLES[name](rows, options)
        assert advantages == pytest.approx(expected[0], rel=1e-4, abs=1e-4), seed
        assert returns == pytest.approx(expected[1], rel=1e-4, abs=1e-4), seed


@pytest.mark.parametrize("name", sorted(set(RECORDS) - {"on_policy_distillation"}))
@pytest.mark.parametrize("coef", [1.0, 0.3])
def test_the_teachers_penalty_on_every_estimator(name: str, coef: float) -> None:
    """``A - coef (old - teacher)`` where the mask is on; returns stay, so that a critic does not learn the penalty."""
    for seed in SEEDS[:8]:
        rows = random_rows(seed)
        plain = run(estimator(name), rows)
        made = estimator(name, use_opd=True, opd_kl_coef=coef)
        assert made.needs >= {"teacher_log_probs", "old_log_probs"}
        advantages, returns = run(made, rows)
        penalty = [coef * (row.old[t] - row.teacher[t]) if m else 0.0 for row in rows for t, m in enumerate(row.mask)]
        assert advantages == pytest.approx([a - p for a, p in zip(plain[0], penalty, strict=True)], abs=1e-5)
        assert returns == plain[1]


def test_the_penalty_without_rewards_is_distillation() -> None:
    rows = [Row(0.0, row.group, row.mask, row.old, row.ref, row.teacher, row.values) for row in random_rows(3)]
    penalised, _ = run(estimator("grpo", use_opd=True), rows)
    assert penalised == pytest.approx(run(estimator("on_policy_distillation"), rows)[0], abs=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "needs"),
    [
        ("grpo", {}, set()),
        ("gspo", {}, set()),
        ("rloo", {}, set()),
        ("rloo", {"kl_coef": 0.1}, {"old_log_probs", "ref_log_probs"}),
        ("reinforce_plus_plus", {}, set()),
        ("reinforce_plus_plus", {"kl_coef": 0.1}, {"old_log_probs", "ref_log_probs"}),
        ("reinforce_plus_plus_baseline", {"kl_coef": 0.1}, {"old_log_probs", "ref_log_probs"}),
        ("ppo", {}, {"values"}),
        ("ppo", {"kl_coef": 0.1}, {"values", "old_log_probs", "ref_log_probs"}),
        ("on_policy_distillation", {}, {"old_log_probs", "teacher_log_probs"}),
    ],
)
def test_only_what_is_needed_is_asked_for(name: str, options: dict[str, Any], needs: set[str]) -> None:
    assert estimator(name, **options).needs == needs


def test_capabilities_agree_with_needs() -> None:
    for name, record in RECORDS.items():
        needs = estimator(name).needs
        assert ("critic" in record.capabilities) == ("values" in needs), name
        assert ("teacher" in record.capabilities) == ("teacher_log_probs" in needs), name


def row(reward: float, mask: list[int], **given: list[float]) -> Row:
    zeros = [0.0] * len(mask)
    return Row(reward, 0, mask, *(given.get(name, zeros) for name in ("old", "ref", "teacher", "values")))


def test_gae_by_hand() -> None:
    sample = row(1.0, [1, 1, 1, 1], values=[0.1, 0.2, 0.3, 0.4])
    advantages, returns = run(estimator("ppo"), [sample])
    assert advantages == pytest.approx([0.9, 0.8, 0.7, 0.6])
    assert returns == pytest.approx([1.0] * 4)
    advantages, _ = run(estimator("ppo", gamma=0.9, lambd=0.95), [sample])
    assert advantages == pytest.approx([0.5587, 0.5599, 0.5730, 0.6000], abs=1e-4)


def test_gae_takes_masked_tokens_out() -> None:
    """The same numbers with a tool's answer in the middle and one at the end, whose values are wild."""
    plain = run(estimator("ppo", gamma=0.9, lambd=0.95), [row(1.0, [1, 1, 1], values=[0.1, 0.2, 0.3])])
    wild = math.nan
    mixed = row(1.0, [1, 0, 0, 1, 1, 0], values=[0.1, wild, math.inf, 0.2, 0.3, wild])
    advantages, returns = run(estimator("ppo", gamma=0.9, lambd=0.95), [mixed])
    for found, expected in ((advantages, plain[0]), (returns, plain[1])):
        assert [found[t] for t in (0, 3, 4)] == pytest.approx(expected)
        assert [found[t] for t in (1, 2, 5)] == [0.0, 0.0, 0.0]


def test_reinforce_plus_plus_by_hand() -> None:
    """The reward goes to the last unmasked token; a masked one discounts and pays its own penalty."""
    sample = row(1.0, [1, 1, 1, 0], old=[0.1, 0.2, 0.3, 0.4])
    advantages, _ = run(estimator("reinforce_plus_plus", kl_coef=0.5, gamma=0.9), [sample])
    assert advantages == pytest.approx([0.4027, 0.5030, 0.6700, -0.2000], abs=1e-4)


def test_leave_one_out_by_hand() -> None:
    made = estimator("rloo")
    assert made.shape_rewards([1, 0, 0, 0], [5] * 4) == pytest.approx([1.0, -1 / 3, -1 / 3, -1 / 3])
    assert made.shape_rewards([3, 1, 7], [0, 0, 1]) == pytest.approx([2.0, -2.0, 0.0])
    baseline_of = estimator("reinforce_plus_plus_baseline")
    assert baseline_of.shape_rewards([1, 0, 0, 0], [5] * 4) == pytest.approx([0.75, -0.25, -0.25, -0.25])


@pytest.mark.parametrize("name", ["grpo", "gspo", "rloo", "reinforce_plus_plus_baseline"])
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, -0.3, 1e30, 1e-30])
def test_equal_rewards_and_groups_of_one_give_exactly_zero(name: str, reward: float) -> None:
    for n in (1, 2, 3, 7, 8):
        assert estimator(name).shape_rewards([reward] * n, [4] * n) == [0.0] * n


@pytest.mark.parametrize("name", ["ppo", "reinforce_plus_plus", "on_policy_distillation"])
def test_rewards_of_the_rest_stay_as_graded(name: str) -> None:
    assert estimator(name).shape_rewards([3, 1, 5.5], [0, 0, 1]) == [3.0, 1.0, 5.5]


@pytest.mark.parametrize("name", sorted(set(RECORDS) - {"on_policy_distillation"}))
def test_rewards_that_are_no_numbers_are_refused(name: str) -> None:
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="finite"):
            estimator(name).shape_rewards([1.0, bad], [0, 0])
    with pytest.raises(ValueError, match="2 rewards for 1"):
        estimator(name).shape_rewards([1.0, 0.0], [0])


@pytest.mark.parametrize("name", sorted(RECORDS))
@pytest.mark.parametrize("kind", KINDS)
def test_degenerate_inputs_stay_finite(name: str, kind: str) -> None:
    """Tokens that one model or both call impossible, masked infinities, samples without a token or without a trained one."""
    low = -math.inf
    rows = [
        row(1.0, []),
        row(1.0, [1], old=[low], ref=[-1.0], teacher=[-1.0]),
        row(-2.0, [1, 1], old=[-1.0, low], ref=[low, low], teacher=[low, low]),
        row(5.0, [0, 0], old=[low, -1.0], ref=[-1.0, low], teacher=[low, low], values=[math.inf, math.nan]),
        row(0.0, [0, 1, 0], old=[low, -1.0, -1.0], ref=[0.0, -1.0, low], teacher=[0.0, low, 0.0], values=[math.nan, 0.5, math.inf]),
    ]
    switches: dict[str, Any] = {"use_opd": True} if name != "on_policy_distillation" else {}
    if "kl_coef" in {field for group in option_groups(RECORDS[name]) for field in group.__dataclass_fields__}:
        switches |= {"kl_coef": 0.5, "kl_loss_type": kind}
    advantages, returns = run(estimator(name, **switches), rows)
    mask = [m for sample in rows for m in sample.mask]
    assert len(advantages) == len(returns) == len(mask)
    assert all(math.isfinite(x) for found in (advantages, returns) for x, m in zip(found, mask, strict=True) if m)
    assert all(abs(x) < 1e9 for x in advantages)


@pytest.mark.parametrize("name", sorted(RECORDS))
def test_a_rollout_without_tokens_or_samples(name: str) -> None:
    made = estimator(name)
    for rows in ([], [row(1.0, [])]):
        assert run(made, rows) == ([], [])


@pytest.mark.parametrize("name", ["reinforce_plus_plus", "ppo", "rloo", "reinforce_plus_plus_baseline", "on_policy_distillation"])
def test_a_broken_model_is_not_hidden(name: str) -> None:
    """NaN at a token that is trained on comes out as NaN, which core reports (M415)."""
    options = {} if name == "on_policy_distillation" else {"kl_coef": 0.1}
    advantages, _ = run(estimator(name, **options), [row(1.0, [1, 1], old=[math.nan, -1.0], values=[0.0, 0.0])])
    assert any(math.isnan(a) for a in advantages)


@pytest.mark.parametrize("name", sorted(RECORDS))
def test_samples_do_not_touch_each_other(name: str) -> None:
    """Tokens of a sample get the same numbers alone as within a batch: nothing leaks over its ends."""
    made = estimator(name)
    rows = random_rows(11)
    shaped = made.shape_rewards([r.reward for r in rows], [r.group for r in rows])
    together = made(inputs_of(rows, made.needs, shaped)).advantages.tolist()
    alone = [a for r, s in zip(rows, shaped, strict=True) for a in made(inputs_of([r], made.needs, [s])).advantages.tolist()]
    assert together == pytest.approx(alone, abs=1e-6)

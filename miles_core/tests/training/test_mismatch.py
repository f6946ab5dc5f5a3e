"""Engine against trainer, by a slow loop over samples."""

from __future__ import annotations

import math

import pytest
import torch

from miles_core.training import mismatch


def oracle(train, rollout, compared, lengths):
    tokens, samples, start = [], [], 0
    for length in lengths:
        pairs = [(float(train[t]), float(rollout[t])) for t in range(start, start + length) if compared[t]]
        start += length
        tokens += pairs
        if pairs:
            samples.append(pairs)
    weights = [[math.exp(a - b) for a, b in pairs] for pairs in samples]
    ppl = [[-sum(p[i] for p in pairs) / len(pairs) for i in (0, 1)] for pairs in samples]
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    return {
        "train/train_rollout_logprob_abs_diff": mean([abs(a - b) for a, b in tokens]),
        "train/train_rollout_logprob_abs_diff_max": max(abs(a - b) for a, b in tokens),
        "train/mismatch_kl": mean([b - a for a, b in tokens]),
        "train/mismatch_k3_kl": mean([math.exp(a - b) - 1 - (a - b) for a, b in tokens]),
        "train/mismatch_chi2_token": mean([math.exp(2 * (a - b)) - 1 for a, b in tokens]),
        "train/mismatch_training_ppl": mean([math.exp(a) for a, _ in ppl]),
        "train/mismatch_rollout_ppl": mean([math.exp(b) for _, b in ppl]),
        "train/mismatch_log_ppl_diff": mean([a - b for a, b in ppl]),
        "train/mismatch_log_ppl_abs_diff": mean([abs(a - b) for a, b in ppl]),
        "train/mismatch_ppl_ratio": mean([math.exp(a - b) for a, b in ppl]),
        "train/mismatch_chi2_seq": mean([math.exp(2 * sum(a - b for a, b in pairs)) - 1 for pairs in samples]),
        "train/mismatch_ess_ratio": mean([sum(w) ** 2 / (len(w) * sum(x * x for x in w)) for w in weights]),
    }


def measured(train, rollout, compared, lengths):
    found = mismatch.sums(train, rollout, compared, lengths)
    return mismatch.metrics({name: float(found[name]) for name in mismatch.NAMES}, float(found["largest"]))


@pytest.mark.parametrize("seed", range(5))
def test_every_metric_follows_its_formula(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (6,), generator=random).tolist()
    size = sum(lengths)
    train = -torch.rand(size, generator=random) * 3
    rollout = train + 0.4 * torch.randn(size, generator=random)
    compared = (torch.rand(size, generator=random) < 0.7).float()
    compared[: lengths[0]] = 0
    found = measured(train, rollout, compared, lengths)
    assert found == pytest.approx(oracle(train, rollout, compared, lengths), rel=1e-5)


def test_micro_batches_add_up() -> None:
    random = torch.Generator().manual_seed(7)
    train, rollout = -torch.rand(10, generator=random), -torch.rand(10, generator=random)
    whole = mismatch.sums(train, rollout, torch.ones(10), [4, 6])
    parts = mismatch.added(
        mismatch.added(None, mismatch.sums(train[:4], rollout[:4], torch.ones(4), [4])),
        mismatch.sums(train[4:], rollout[4:], torch.ones(6), [6]),
    )
    assert {n: float(v) for n, v in parts.items()} == pytest.approx({n: float(v) for n, v in whole.items()})


def test_equal_log_probs_show_no_mismatch() -> None:
    train = torch.tensor([-1.0, -2.0, -0.5])
    found = measured(train, train, torch.ones(3), [3])
    perplexities = {"train/mismatch_training_ppl", "train/mismatch_rollout_ppl"}
    ones = {"train/mismatch_ppl_ratio", "train/mismatch_ess_ratio"}
    assert all(found[name] == pytest.approx(1) for name in ones)
    assert all(value == 0 for name, value in found.items() if name not in perplexities | ones)


def test_nothing_compared_gives_no_metrics() -> None:
    nan = torch.full((2,), math.nan)
    assert measured(nan, nan, torch.zeros(2), [2]) == {}
    found = mismatch.sums(torch.tensor([-500.0, -1.0]), torch.tensor([-1.0, -500.0]), torch.ones(2), [1, 1])
    assert all(math.isfinite(float(value)) for value in found.values())

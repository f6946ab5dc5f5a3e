"""Metrics of samples that are off by default: pass@k, correct responses, categories of rewards, turns."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence

from miles_core.config import LoggingOptions
from miles_core.samples import Sample, Scored, Status

CATEGORIES = 32
"""Categories that get a metric of their own in one rollout, the most frequent ones; the rest is ``other``."""
MISSING = "missing"
"""The category of a sample whose reward has none."""

Groups = Sequence[Sequence[Sample]]


def optional_rollout_metrics(groups: Groups, options: LoggingOptions) -> dict[str, float]:
    """What the options add to the metrics of a rollout."""
    samples = [sample for group in groups for sample in group]
    found: dict[str, float] = {}
    if options.log_passrate:
        found |= {f"passrate/{name}": value for name, value in pass_rates(groups, options.log_correct_threshold).items()}
    if options.log_correct_samples:
        found |= {f"rollout/{name}": value for name, value in correct_samples(samples, options.log_correct_threshold).items()}
    if options.log_reward_category is not None:
        found |= {f"rollout/{name}": value for name, value in categories(samples, options.log_reward_category).items()}
    if options.log_multi_turn:
        found |= {f"multi_turn/{name}": value for name, value in turns(samples).items()}
    return found


def optional_evaluation_metrics(name: str, groups: Groups, options: LoggingOptions) -> dict[str, float]:
    """What the options add to the metrics of the evaluation set ``name``."""
    samples = [sample for group in groups for sample in group]
    found: dict[str, float] = {}
    if options.log_passrate:
        found |= {f"eval/{name}-{key}": value for key, value in pass_rates(groups, options.log_correct_threshold).items()}
    if options.log_reward_category is not None:
        found |= {f"eval/{name}/{key}": value for key, value in categories(samples, options.log_reward_category).items()}
    return found


def is_correct(reward: float | None, threshold: float | None) -> bool:
    """Whether a response counts as correct: reward exactly 1, or at least ``threshold`` where one is given."""
    return reward is not None and (reward == 1 if threshold is None else reward >= threshold)


def pass_rates(groups: Groups, threshold: float | None) -> dict[str, float]:
    """``pass@k`` for k = 1, 2, 4, ... up to the size of a group, averaged over groups.

    The unbiased estimator of Chen et al., 2021 (arXiv:2107.03374), equation 1: with ``c`` of ``n`` responses correct,
    ``1 - C(n - c, k) / C(n, k)``.

    Groups in which a sample could not be graded are left out: nobody knows their ``c``. Groups of one sample say nothing that the
    mean reward does not, and give no metric.
    """
    complete = [group for group in groups if all(sample.reward is not None for sample in group)]
    rates: dict[int, list[float]] = {}
    for group in complete:
        n, c = len(group), sum(is_correct(sample.reward, threshold) for sample in group)
        if n > 1:
            for k in (2**i for i in range(n.bit_length())):
                rates.setdefault(k, []).append(pass_at(n, c, k))
    return {f"pass@{k}": statistics.fmean(values) for k, values in sorted(rates.items())}


def pass_at(n: int, c: int, k: int) -> float:
    """The chance that ``k`` of ``n`` responses, ``c`` of which are correct, have a correct one among them."""
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def correct_samples(samples: Sequence[Sample], threshold: float | None) -> dict[str, float]:
    """How many responses are correct, how long those are (mean and quartiles, in tokens), and their entropy.

    The entropy is the estimate from the tokens that were sampled: the mean over responses of the mean of ``-log p`` over the tokens
    that are trained on, with the engine's log-probs, in nats. Quartiles interpolate linearly.
    """
    correct = [sample for sample in samples if is_correct(sample.reward, threshold)]
    found = {"correct_samples": float(len(correct))}
    if not correct:
        return found
    lengths = [sample.response_length for sample in correct]
    low, middle, high = statistics.quantiles(lengths, n=4, method="inclusive") if len(lengths) > 1 else lengths * 3
    found["correct_length/mean"] = statistics.fmean(lengths)
    found |= {"correct_length/p25": float(low), "correct_length/p50": float(middle), "correct_length/p75": float(high)}
    entropies = [value for sample in correct if (value := _entropy(sample)) is not None]
    if entropies:
        found["correct_entropy"] = statistics.fmean(entropies)
    return found


def categories(samples: Sequence[Sample], key: str) -> dict[str, float]:
    """The share of samples by what their reward's dict has under ``key``, as ``error_cat/<value>``."""
    counts = Counter(_category(sample, key) for sample in samples)
    named = dict(counts.most_common(CATEGORIES))
    rest = sum(counts.values()) - sum(named.values())
    if rest:
        named["other"] = named.get("other", 0) + rest
    return {f"error_cat/{name}": count / len(samples) for name, count in named.items()}


def turns(samples: Sequence[Sample]) -> dict[str, float]:
    """Lengths of whole responses, lengths of what the model itself wrote in them, and rounds.

    What the model wrote are the tokens that the loss mask keeps (``wo_obs``: without observations); rounds are the
    ``round_number`` that a generate function leaves in the metadata, and absent without any.
    """
    raw = [sample.response_length for sample in samples]
    own = [sum(sample.loss_mask) if sample.loss_mask is not None else sample.response_length for sample in samples]
    found = {
        **_spread("raw_response_length/response_length", raw),
        "raw_response_length/response_length_clip_ratio": statistics.fmean(s.status is Status.TRUNCATED for s in samples),
        **_spread("wo_obs_response_length/response_length", own),
    }
    rounds = [value for sample in samples if isinstance(value := sample.metadata.get("round_number"), int | float)]
    return {**found, **_spread("multi_turn_metric/round_number", rounds)} if rounds else found


def _spread(name: str, values: Sequence[float]) -> dict[str, float]:
    return {f"{name}_mean": statistics.fmean(values), f"{name}_max": float(max(values)), f"{name}_min": float(min(values))}


def _entropy(sample: Sample) -> float | None:
    if sample.rollout_log_probs is None:
        return None
    kept = [-value for value, keep in zip(sample.rollout_log_probs, sample.train_mask(), strict=True) if keep]
    return statistics.fmean(kept) if kept else None


def _category(sample: Sample, key: str) -> str:
    value = sample.score.value if isinstance(sample.score, Scored) else None
    if not isinstance(value, Mapping) or key not in value:
        return MISSING
    # A metric's name is one word in every logger.
    return "_".join(str(value[key]).replace("/", "_").split())[:64] or MISSING

"""What is logged of a rollout and of an evaluation."""

from __future__ import annotations

import math
import statistics
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence

from miles_core.rollout.collector import Collected
from miles_core.samples import Sample, Status

REPETITION_CHARACTERS = 10000
REPETITION_RATIO = 10


def rollout_metrics(collected: Collected, seconds: float, devices: int, version: int) -> dict[str, float]:
    """Metrics of one rollout, under ``rollout/`` and ``perf/``.

    Args:
        seconds: that collecting took.
        devices: that generated.
        version: of the weights that the engines serve.
    """
    samples = [s for group in collected.groups for s in group]
    metrics = {f"rollout/{name}": value for name, value in _responses(samples).items()}
    rewards = [s.reward for s in samples if s.reward is not None]
    if rewards:
        metrics["rollout/raw_reward"] = statistics.fmean(rewards)
    metrics["rollout/reward_failures/invalid"] = collected.tally.invalid
    metrics["rollout/reward_failures/timeout"] = collected.tally.timeout
    metrics["rollout/aborted"] = sum(s.status is Status.ABORTED for s in samples)
    informative = 0
    equal: Counter[float] = Counter()
    for group in collected.groups:
        values = {s.reward for s in group if s.reward is not None}
        if len(values) > 1:
            informative += 1
        elif len(values) == 1:
            # Adding 0.0 turns -0.0, which rounding makes of small negative rewards, into 0.0.
            equal[round(next(iter(values)), 1) + 0.0] += 1
    metrics["rollout/informative_groups"] = informative
    metrics |= {f"rollout/zero_std/count_{value:g}": count for value, count in equal.items()}
    metrics |= {f"rollout/dynamic_filter/drop_{reason}": count for reason, count in collected.dropped.items()}
    metrics["rollout/generated_samples"] = len(collected.generated)
    metrics |= _leftovers(collected)
    metrics |= _staleness(samples, version)
    metrics["perf/rollout_time"] = seconds
    metrics |= _speed(collected, samples, seconds, devices)
    return {name: float(value) for name, value in metrics.items()}


def evaluation_metrics(name: str, samples: Sequence[Sample]) -> dict[str, float]:
    """Metrics of one evaluation set, under ``eval/``: the mean reward is over the samples that could be graded."""
    rewards = [s.reward for s in samples if s.reward is not None]
    metrics = {f"eval/{name}/{key}": value for key, value in _responses(samples).items() if key != "truncated_ratio"}
    metrics[f"eval/{name}"] = statistics.fmean(rewards) if rewards else math.nan
    metrics[f"eval/{name}-truncated_ratio"] = _share(s.status is Status.TRUNCATED for s in samples)
    metrics[f"eval/{name}/reward_failures"] = float(len(samples) - len(rewards))
    return metrics


def _speed(collected: Collected, samples: Sequence[Sample], seconds: float, devices: int) -> dict[str, float]:
    """Tokens per second: all that were made, those that are trained on, and those of the longest response."""
    seconds = max(seconds, 1e-9)
    return {
        "perf/tokens_per_gpu_per_sec": collected.tokens / seconds / max(devices, 1),
        "perf/effective_tokens_per_gpu_per_sec": sum(sum(s.train_mask()) for s in samples) / seconds / max(devices, 1),
        "perf/longest_sample_tokens_per_sec": max(s.response_length for s in samples) / seconds,
    }


def _leftovers(collected: Collected) -> dict[str, float]:
    """What came from earlier rollouts, and what this one leaves to the next."""
    return {
        "rollout/submissions": collected.submissions,
        "rollout/resumed_groups": collected.resumed_groups,
        "rollout/resumed_samples": collected.resumed_samples,
        "rollout/surplus_groups": collected.surplus,
        "rollout/kept_groups": collected.kept,
        "rollout/returned_prompts": collected.returned,
    }


def _staleness(samples: Sequence[Sample], version: int) -> dict[str, float]:
    """How many versions of the weights ago each response token was made; nothing when no engine made any."""
    lags = [(version - made, tokens) for s in samples for made, tokens in s.weight_versions if tokens]
    if not lags:
        return {}
    total = sum(tokens for _, tokens in lags)
    return {
        "rollout/staleness_mean": sum(lag * tokens for lag, tokens in lags) / total,
        "rollout/staleness_max": max(lag for lag, _ in lags),
    }


def _responses(samples: Sequence[Sample]) -> dict[str, float]:
    lengths = [s.response_length for s in samples]
    return {
        "response_len/mean": statistics.fmean(lengths),
        "response_len/median": float(statistics.median(lengths)),
        "response_len/max": float(max(lengths)),
        "response_len/min": float(min(lengths)),
        "truncated_ratio": _share(s.status is Status.TRUNCATED for s in samples),
        "repetition_frac": _share(_repeats(s.response) for s in samples),
    }


def _repeats(text: str) -> bool:
    """Whether a long response's end compresses more than tenfold."""
    if len(text) <= REPETITION_CHARACTERS:
        return False
    end = text[-REPETITION_CHARACTERS:].encode("utf-8", "replace")
    return len(end) / len(zlib.compress(end, 9)) > REPETITION_RATIO


def _share(values: Iterable[bool]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else 0.0

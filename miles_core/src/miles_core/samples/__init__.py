"""Plain data that passes between the parts of a run. Standard library only."""

from miles_core.samples.generation import FinishReason, GenerateRequest, GenerateResult, SamplingParams
from miles_core.samples.sample import Sample, SampleGroup, Status, row_reward
from miles_core.samples.score import Invalid, Score, Scored, Timeout

__all__ = [
    "FinishReason",
    "GenerateRequest",
    "GenerateResult",
    "Invalid",
    "Sample",
    "SampleGroup",
    "SamplingParams",
    "Score",
    "Scored",
    "Status",
    "Timeout",
    "row_reward",
]

"""Reward ``brevity``: 1 up to a budget of tokens, then budget / length."""

from collections.abc import Sequence

from miles_core.options import Config
from miles_core.samples import Invalid, Sample, Score, Scored
from miles_example_reward.plugin import BrevityOptions


class BrevityReward:
    def __init__(self, config: Config) -> None:
        self.tokens = config.get(BrevityOptions).tokens

    async def score(self, samples: Sequence[Sample]) -> list[Score]:
        return [self.grade(sample) for sample in samples]

    async def close(self) -> None:
        pass

    def grade(self, sample: Sample) -> Score:
        if not sample.response_ids:
            return Invalid("the response is empty")
        return Scored(min(1.0, self.tokens / sample.response_length))

import asyncio

from miles_example_reward.brevity import BrevityReward
from miles_example_reward.plugin import BrevityOptions

from miles_core.options import Config
from miles_core.samples import Invalid, Sample, Scored


def test_brevity() -> None:
    reward = BrevityReward(Config.of(BrevityOptions(tokens=10)))
    samples = [Sample(response_ids=[7] * n) for n in (5, 10, 40, 0)]
    assert asyncio.run(reward.score(samples)) == [Scored(1.0), Scored(1.0), Scored(0.25), Invalid("the response is empty")]

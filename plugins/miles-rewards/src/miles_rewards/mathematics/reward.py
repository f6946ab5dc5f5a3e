r"""Reward ``math``: 1.0 when the last ``\boxed{...}`` of the response equals the label, 0.0 when it does not.

Source: the graders of Hendrycks et al. 2021 (MATH, arXiv:2103.03874) and Lightman et al. 2023 (PRM800K, arXiv:2305.20050), with
math-verify's LaTeX parser behind them. ``docs/rewards.md`` lists where it decides otherwise than those.

Contract: the whole response is searched, reasoning included; of several boxes the last counts. A response without a box is
wrong: 0.0. A label that is missing or cannot be read, and an answer that is not fit to be graded, is ``Invalid``.

Examples: ``\boxed{\frac{1}{2}}`` for ``0.5`` is 1.0; ``42`` for ``42`` is 0.0, there is no box.

Omissions: no partial credit, no units beyond dropping them, no tolerance: 0.3333 is not 1/3.
"""

from __future__ import annotations

from miles_core.options import Config
from miles_core.samples import Sample, Scored
from miles_rewards.mathematics.boxed import label_answer, last_boxed
from miles_rewards.mathematics.comparison import Comparison
from miles_rewards.rule import Question, RuleReward


def create(config: Config) -> RuleReward:
    """The reward. Worker processes start with the first answer that needs algebra."""
    return RuleReward(find, Comparison(config))


def find(sample: Sample) -> Scored | Question:
    """The boxed answer and the label's.

    Raises:
        Ungradable: there is no usable label.
    """
    stated = label_answer(sample.label)
    answer = last_boxed(sample.response)
    return Scored(0.0, "no box") if answer is None else Question(answer, stated)

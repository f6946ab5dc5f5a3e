"""Reward ``judge``: the verdict of a language model, from 0.0 to 1.0.

Source: LLM-as-a-judge, Zheng et al. 2023 (arXiv:2306.05685), single-answer grading with a reference.

Contract: each sample is one request to ``--judge-url``/chat/completions of an OpenAI-compatible server, temperature 0. The answer
must end with the line ``VERDICT: <number>``, from 0 to ``--judge-scale``; the score is the number divided by the scale. An answer
without that line, off the scale, or cut off is ``Invalid``, and so is a server that fails (retried as ``remote_rm`` is).

Assumptions: the judge is an instruction-tuned model. What the policy wrote stands between marks that it cannot know, and only
the last line counts; that makes talking the judge over harder, not impossible.

Omissions: no pairwise comparison, no averaging over several verdicts or orders.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from miles_core.options import Config
from miles_core.samples import Invalid, Sample, Score, Scored, Timeout
from miles_rewards.judge.options import JudgeOptions, judge_errors, read_template
from miles_rewards.judge.question import TEMPLATE, messages, verdict
from miles_rewards.remote.client import JsonClient
from miles_rewards.remote.options import RequestOptions, address_errors, token

OWNER = "reward judge"
PATH = "/chat/completions"
SHOWN = 300


class JudgeReward:
    """Implements :class:`miles_core.protocols.Reward`."""

    def __init__(self, client: JsonClient, model: str, template: str, scale: float, max_tokens: int) -> None:
        self._client = client
        self._model = model
        self._template = template
        self._scale = scale
        self._max_tokens = max_tokens

    async def score(self, samples: Sequence[Sample]) -> list[Score]:
        """One score per sample, in order."""
        return list(await asyncio.gather(*(self._judge(sample) for sample in samples)))

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _judge(self, sample: Sample) -> Score:
        if not isinstance(sample.response, str):
            return Invalid(f"the response is a {type(sample.response).__name__}, not text")
        try:
            asked = messages(sample, self._template, self._scale)
        except ValueError as error:
            # An integer of thousands of digits has no text.
            return Invalid(f"the sample cannot be put into words: {error}")
        body = {
            "model": self._model,
            "messages": asked,
            "temperature": 0,
            "max_tokens": self._max_tokens,
        }
        return self._read(await self._client.post(body))

    def _read(self, answer: Any) -> Score:
        if isinstance(answer, Invalid | Timeout):
            return answer
        try:
            choice = answer["choices"][0]
            content, reason = choice["message"]["content"], choice.get("finish_reason")
        except (TypeError, LookupError, AttributeError):
            return Invalid(f"the judge's server answered with no chat completion: {str(answer)[:SHOWN]}")
        if not isinstance(content, str):
            return Invalid(f"the judge said nothing (finish_reason {reason})")
        if reason == "length":
            return Invalid(f"the judge was cut off after {self._max_tokens} tokens (--judge-max-tokens)")
        value = verdict(content, self._scale)
        if value is None:
            return Invalid(f"the judge's last line is no VERDICT from 0 to {self._scale:g}: ...{content.strip()[-SHOWN:]}")
        return Scored(value, content.strip()[-SHOWN:])


def create(config: Config) -> JudgeReward:
    """The reward. Connections open with the first sample.

    Raises:
        UsageError: M295 or M296, an option that nothing can be asked with.
    """
    options = config.get(JudgeOptions)
    for error in (*address_errors(options.judge_url, "--judge-url", OWNER), *judge_errors(options, OWNER)):
        raise error
    assert options.judge_url is not None
    assert options.judge_model is not None
    url = options.judge_url.rstrip("/")
    key = token(options.judge_key_env, "--judge-key-env", OWNER)
    client = JsonClient(url if url.endswith(PATH) else url + PATH, key, config.get(RequestOptions))
    template = read_template(options.judge_template, OWNER) if options.judge_template is not None else TEMPLATE
    return JudgeReward(client, options.judge_model, template, options.judge_scale, options.judge_max_tokens)

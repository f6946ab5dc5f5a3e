"""Reward ``remote_rm``: what a server answers to a POST of the sample.

Contract: ``--rm-url`` gets ``{"prompt", "response", "label"}``, and ``"metadata"`` where the sample has some, as JSON. A 2xx answer
is the score: a number (or true, false), or a dict in which ``--reward-key`` names one. Everything else is tried again or is a
failure, see :class:`~miles_rewards.remote.client.JsonClient`; a failure is ``Invalid`` or ``Timeout`` with its reason, never 0.

Omissions: one sample is one request, no batches; no client certificates. ``boxed_remote_rm`` sends the content of the last box as
the response, and an empty one when there is none.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from miles_core.options import Config
from miles_core.samples import Invalid, Sample, Score, Scored, Timeout
from miles_rewards.mathematics.boxed import last_boxed
from miles_rewards.remote.client import JsonClient
from miles_rewards.remote.options import RemoteOptions, RequestOptions, address_errors, token

OWNER = "reward remote_rm"


class RemoteReward:
    """Implements :class:`miles_core.protocols.Reward`."""

    def __init__(self, client: JsonClient, boxed: bool = False) -> None:
        self._client = client
        self._boxed = boxed

    async def score(self, samples: Sequence[Sample]) -> list[Score]:
        """One score per sample, in order."""
        return list(await asyncio.gather(*(self._ask(sample) for sample in samples)))

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _ask(self, sample: Sample) -> Score:
        if not isinstance(sample.response, str):
            return Invalid(f"the response is a {type(sample.response).__name__}, not text")
        if self._boxed:
            sample = dataclasses.replace(sample, response=last_boxed(sample.response) or "")
        body: dict[str, Any] = {"prompt": sample.prompt, "response": sample.response, "label": sample.label}
        if sample.metadata:
            body["metadata"] = sample.metadata
        return as_score(await self._client.post(body))


def create(config: Config) -> RemoteReward:
    """The reward. Connections open with the first sample.

    Raises:
        UsageError: M295, no usable address or token.
    """
    return RemoteReward(_client(config))


def create_boxed(config: Config) -> RemoteReward:
    """The reward of the last box."""
    return RemoteReward(_client(config), boxed=True)


def as_score(answer: Any) -> Score:
    """The score that an answer states."""
    if isinstance(answer, Invalid | Timeout):
        return answer
    if isinstance(answer, dict):
        return Scored(answer) if answer else Invalid("the server answered with an empty dict")
    if isinstance(answer, int | float):
        try:
            number = float(answer)
        except OverflowError:
            number = math.inf
        return Scored(number) if math.isfinite(number) else Invalid(f"the server answered {number}")
    said = repr(answer)
    return Invalid(f"the server answered {said[:80]}, neither a number nor a dict")


def _client(config: Config) -> JsonClient:
    options = config.get(RemoteOptions)
    for error in address_errors(options.rm_url, "--rm-url", OWNER):
        raise error
    assert options.rm_url is not None
    return JsonClient(options.rm_url, token(options.rm_auth_env, "--rm-auth-env", OWNER), config.get(RequestOptions))

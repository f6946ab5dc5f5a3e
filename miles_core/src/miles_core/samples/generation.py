"""Generation across the engine boundary: token ids in, token ids out."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


class FinishReason(enum.StrEnum):
    """Why a response ended."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


@dataclass(frozen=True)
class SamplingParams:
    """How to sample. Names are those of SGLang's ``sampling_params``.

    ``temperature`` 0 is greedy. ``top_k`` -1 and ``top_p`` 1 are off. A stop string stays in the response.
    ``sampling_seed`` makes the response a function of the prompt, the weights, the seed and the batch that it ran in.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    skip_special_tokens: bool = False
    sampling_seed: int | None = None


@dataclass(frozen=True)
class GenerateRequest:
    """One response to make. ``rid`` is unique in the run; ``input_ids`` are prompt ids plus any earlier response ids.

    ``logprob_start`` asks for the log-probs of the prompt's own tokens behind that position; None asks for none.
    ``media`` are the prompt's images, videos and sounds by kind, as URLs or base64. ``return_routed_experts`` asks for the experts
    of every token, of an engine with capability ``routed_experts``.
    """

    rid: str
    input_ids: Sequence[int]
    params: SamplingParams
    logprob_start: int | None = None
    return_routed_experts: bool = False
    media: Mapping[str, Sequence[str]] | None = None


@dataclass(frozen=True)
class GenerateResult:
    """One response.

    Attributes:
        output_ids: new token ids, ``[R]``, including the end token when it was sampled.
        log_probs: their log-probs under the sampling temperature, before top-p and top-k, ``[R]``.
        weight_version: version of the weights that made them.
        text: decoded ``output_ids``.
        input_log_probs: log-prob and id of every prompt token from ``logprob_start`` on, under the sampling temperature (1 for a
            temperature of 0); the first has no log-prob. None when none were asked for.
        routed_experts: the experts that every token of prompt and response but the last went to, int32 in C order,
            ``[tokens - 1, layers, top_k]``. None when they were not asked for, or no token was made.
    """

    rid: str
    output_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    finish_reason: FinishReason
    weight_version: int
    text: str
    prompt_tokens: int = 0
    input_log_probs: tuple[tuple[float | None, int], ...] | None = None
    routed_experts: bytes | None = None

"""Routes of a mixture of experts, from the engine's answers to the rows that are trained on."""

from __future__ import annotations

import numpy as np

from miles_core.errors import RunError
from miles_core.runtime.experts import Experts
from miles_core.samples import GenerateResult, Sample

OWN_CHOICE = -1
"""An expert's number that leaves the choice to the router, as :mod:`miles_core.training.routing` has it."""

_OWNER = "miles-core"


def keep_routes(sample: Sample, result: GenerateResult, experts: Experts) -> None:
    """Put an answer's routes on its sample, which has the answer's tokens already.

    They are those of the whole sample: an engine that goes on with a response computes the tokens before it anew. An answer
    without a token brings none, and the sample keeps what it has.

    Raises:
        RunError: the engine made tokens and told no routes (M433), or they are of other tokens or another model (M434).
    """
    if result.routed_experts is None:
        if not result.output_ids:
            return
        raise RunError(
            "M433",
            f"sample {sample.index} has no routed experts",
            owner=_OWNER,
            why="the engine sent none in meta_info.routed_experts, though it was asked for them",
            fix="start it with --enable-return-routed-experts or what it calls it, or use --use-routing-replay",
            sample=sample.index,
        )
    try:
        sample.routed_experts = read_routes(result.routed_experts, len(sample.tokens), experts)
    except ValueError as error:
        raise RunError(
            "M434",
            f"sample {sample.index} has routes of a wrong shape",
            owner=_OWNER,
            why=f"the engine sent {error}",
            fix="engine and trainer must run the same model",
            sample=sample.index,
        ) from None


def read_routes(data: bytes, tokens: int, experts: Experts) -> np.ndarray:
    """Routes as engines send them, int32 in C order, as int16 ``[tokens - 1, layers, top_k]``.

    Raises:
        ValueError: they are of other tokens or another model.
    """
    shape = (tokens - 1, experts.layers, experts.top_k)
    numbers = np.frombuffer(data, "<i4") if len(data) % 4 == 0 else np.empty(0, "<i4")
    if numbers.size != np.prod(shape) or (numbers.size and not -1 <= numbers.min() <= numbers.max() < experts.experts):
        raise ValueError(
            f"{numbers.size} numbers up to {numbers.max(initial=-1)} for [{shape[0]}, {shape[1]}, {shape[2]}] "
            f"(tokens - 1, layers, experts per token) below {experts.experts}"
        )
    return numbers.astype(np.int16).reshape(shape)


def whole_routes(sample: Sample) -> np.ndarray | None:
    """Routes of every token, int16, ``[T, layers, top_k]``.

    The last token was never sent anywhere, nor was what a function observed last: both leave the choice open.
    """
    routes = sample.routed_experts
    if routes is None:
        return None
    return np.concatenate([routes, np.full((len(sample.tokens) - len(routes), *routes.shape[1:]), OWN_CHOICE, np.int16)])

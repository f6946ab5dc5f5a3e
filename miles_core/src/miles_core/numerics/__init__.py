"""Batch-invariant computation on CPUs in fp32: a token's log-prob has the same bits in whatever batch it is computed.

Two processes that compute the same tokens with the same weights agree exactly only if no result depends on what else is in the
batch, on padding and packing, on decoding against a cache or passing over the whole sequence, and on the number of threads.
What PyTorch computes element by element with correctly rounded operations does that by nature. The rest:

- Matrix products change the order of their sums with the number of rows and threads (:mod:`miles_core.numerics.product` gives them
  one shape and one thread each).
- Attention sums over as many keys as there are (:mod:`miles_core.numerics.attention` adds blocks of keys one after the other).
- Some vectorised kernels have another formula for the last few elements, such as SiLU's (:mod:`miles_core.numerics.activation`).
- Row-wise means, ``exp``, ``sin``, ``cos`` and ``log_softmax`` of PyTorch depend on no neighbours, and tests hold them to it.

Importing this package imports no torch; its modules do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ARCHITECTURES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""``model_type`` of the models that :func:`miles_core.numerics.model.make_invariant` knows all operations of."""
ACTIVATIONS = frozenset({"silu", "swish"})
POSITIONS = frozenset({"default", "linear", "llama3"})
"""Rotary embeddings whose frequencies do not depend on the length of the sequence."""


def obstacle(config: Mapping[str, Any]) -> str:
    """What in a model's ``config.json`` stands against invariant computation, in words; empty when nothing does."""
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        return f"its model_type is {kind}, and the operations of {', '.join(sorted(ARCHITECTURES))} are known"
    activation = config.get("hidden_act", "silu")
    if activation not in ACTIVATIONS:
        return f"its activation is {activation}, and {' and '.join(sorted(ACTIVATIONS))} are known"
    ropes = [config.get(name) or {} for name in ("rope_scaling", "rope_parameters")]
    for rope in ropes:
        position = rope.get("rope_type", rope.get("type", "default"))
        if position not in POSITIONS:
            return f"its rotary embedding is {position}, whose frequencies may depend on the length of the sequence"
    return ""


__all__ = ["ACTIVATIONS", "ARCHITECTURES", "POSITIONS", "obstacle"]

"""Log-probs of prompts' own tokens, by one pass without a cache."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from miles_transformers.model import LoadedModel

LOGITS = 1 << 28
"""Most logits at a time: 1 GiB in fp32."""


def prompt_log_probs(model: LoadedModel, prompts: Sequence[tuple[Sequence[int], float]]) -> list[list[float]]:
    """For each prompt of P tokens the log-probs of all but its first, ``[P - 1]``, in float32.

    Args:
        model: the model.
        prompts: token ids, and the temperature that divides the logits.
    """
    lengths = [len(ids) for ids, _ in prompts]
    width, device = max(lengths), model.device
    # Padding on the right lies in every real token's future, so the causal mask hides it.
    ids = torch.tensor([[*tokens, *[0] * (width - len(tokens))] for tokens, _ in prompts], device=device)
    columns = torch.arange(width, device=device)
    distance = (columns[:, None] - columns[None, :]).expand(len(prompts), 1, width, width)
    inputs = {
        "input_ids": ids,
        "position_ids": columns.expand(len(prompts), width),
        "attention_mask": model.masks(distance >= 0, distance),
        "use_cache": False,
    }
    real = columns[1:] < torch.tensor(lengths, device=device)[:, None]
    places = (torch.arange(len(prompts), device=device)[:, None] * width + columns[:-1])[real]
    targets = ids[:, 1:][real]
    temperatures = torch.tensor([t for _, t in prompts], device=device)[:, None].expand_as(real)[real]
    parts = [torch.zeros(0, device=device)]
    start = 0
    for logits in _logits(model.module, inputs, places, max(1, LOGITS // model.vocab)):
        stop = start + logits.shape[0]
        every = torch.log_softmax(logits.float() / temperatures[start:stop, None], dim=-1)
        parts.append(every.gather(1, targets[start:stop, None])[:, 0])
        start = stop
    found = iter(torch.cat(parts).tolist())
    return [list(itertools.islice(found, length - 1)) for length in lengths]


def _logits(module: Any, inputs: dict[str, Any], places: Tensor, size: int) -> Iterator[Tensor]:
    """Logits ``[n, V]`` of the given places of the flattened tokens, ``size`` at a time.

    One pass serves them all where the model returns its head's output as it is; one that scales or caps it makes a pass each.
    """
    head = module.get_output_embeddings()
    hidden: list[Tensor] = []
    made: list[Tensor] = []
    plain = False
    for chunk in torch.split(places, size):
        if plain:
            yield head(hidden[0].index_select(0, chunk))
            continue

        def select(_: Any, args: tuple[Tensor, ...], rows: Tensor = chunk) -> tuple[Tensor, ...]:
            hidden[:] = [args[0].flatten(0, 1)]
            return (hidden[0].index_select(0, rows)[None],)

        def keep(_module: Any, _args: Any, output: Tensor) -> None:
            made[:] = [output]

        handles = head.register_forward_pre_hook(select), head.register_forward_hook(keep)
        try:
            logits = module(**inputs).logits
        finally:
            for handle in handles:
                handle.remove()
        plain = logits.data_ptr() == made[0].data_ptr() and logits.shape == made[0].shape
        yield logits[0]

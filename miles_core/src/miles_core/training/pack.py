"""Rows to micro-batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from miles_core.config import TrainingOptions
from miles_core.training.batch import MicroBatch
from miles_core.training.table import FILLER, RowTable, ranges


def padding_multiple(options: TrainingOptions, device: torch.device) -> int:
    """Multiple of tokens that micro-batches are padded to: kernels of an accelerator are compiled and cached by shape."""
    return 1 if device.type == "cpu" else options.data_pad_size_multiplier


def pack(table: RowTable, rows: Sequence[int], fields: Mapping[str, np.ndarray], *, layout: str, multiple: int = 1) -> MicroBatch:
    """One micro-batch, on the CPU.

    Args:
        table: the rank's rows.
        rows: positions of the rows to take; none makes the filler, all of whose per-token fields are those of its entry.
        fields: flat per-token arrays, ``[N + 1]``, to put into ``data``.
        layout: ``thd`` or ``bshd``.
        multiple: pad the packed row, or every padded one, to a multiple of this many tokens.
    """
    chosen = np.array(tuple(rows) or (FILLER,), np.int64)
    lengths, responses = table.lengths[chosen], table.response_lengths[chosen]
    content = table.tokens[table.token_index(chosen)]
    within = ranges(np.zeros_like(lengths), lengths)
    if layout == "thd":
        bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        total = int(bounds[-1])
        padding = -total % multiple
        tokens, positions = content[None], within[None]
        if padding:
            tokens = np.concatenate([content, np.zeros(padding, np.int64)])[None]
            positions = np.concatenate([within, np.arange(padding)])[None]
            bounds = np.append(bounds, total + padding)
        starts = bounds[: len(chosen)]
        cu_seqlens, attention_mask = torch.from_numpy(bounds.astype(np.int32)), None
        longest = max(int(lengths.max()), padding)
    elif layout == "bshd":
        longest = int(lengths.max())
        longest += -longest % multiple
        starts = np.arange(len(chosen)) * longest
        tokens = np.zeros((len(chosen), longest), np.int64)
        tokens.reshape(-1)[ranges(starts, lengths)] = content
        positions = np.tile(np.arange(longest), (len(chosen), 1))
        cu_seqlens, attention_mask = None, torch.from_numpy(np.arange(longest)[None] < lengths[:, None])
    else:
        raise ValueError(f"{layout} is no layout; thd and bshd are")
    logit_index = ranges(starts + lengths - responses - 1, responses)
    index = table.response_index(chosen)
    return MicroBatch(
        tokens=torch.from_numpy(tokens),
        position_ids=torch.from_numpy(positions),
        rows=tuple(chosen.tolist()),
        lengths=tuple(responses.tolist()),
        logit_index=torch.from_numpy(logit_index),
        targets=torch.from_numpy(tokens.reshape(-1)[logit_index + 1]),
        max_seqlen=longest,
        cu_seqlens=cu_seqlens,
        attention_mask=attention_mask,
        data={name: torch.from_numpy(values[index]) for name, values in fields.items()},
    )

"""The model against transformers' one, before anything is trained."""

from __future__ import annotations

import gc
import json
import logging
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from miles_core.accelerator.device import accelerator_of
from miles_core.errors import UsageError
from miles_core.hf import register_families
from miles_core.protocols.backend import OutputRequest
from miles_core.training.batch import MicroBatch
from miles_megatron.parallel import OWNER, is_last_stage, place
from miles_megatron.passes import Pass

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from transformers import PretrainedConfig

    from miles_megatron.architecture import Architecture
    from miles_megatron.policy import Policy

LENGTHS = (24, 40)
"""Tokens of the rows that are compared."""
BOUNDS = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""The largest mean difference by precision: wrong constants or weights give several times as much, rounding a fraction."""

_log = logging.getLogger(__name__)


def compare(policy: Policy, checkpoint: Path, architecture: Architecture, device: torch.device) -> None:
    """Compare log-probs of random tokens with those that transformers computes from the checkpoint. Collective.

    One rank loads the checkpoint a second time, in the precision of the computation. Where its device has no room for that, nothing
    is compared, and the log says so.

    Raises:
        UsageError: they differ (M553).
    """
    rows = _rows(architecture.vocab_size)
    outputs = Pass(policy, policy.chunks, OutputRequest()).forward([_packed(rows).to(device)])
    difference = torch.zeros(1, dtype=torch.float64, device=device)
    if place().reports and outputs and outputs[0].log_probs is not None:
        wanted = _of_transformers(checkpoint, architecture.name, rows, device, policy.compute)
        if wanted is not None:
            difference += float((outputs[0].log_probs - wanted).abs().mean())
    dist.all_reduce(difference, dist.ReduceOp.MAX)
    found, bound = float(difference), BOUNDS[policy.compute]
    # Not a number is no small difference.
    if not found <= bound:
        raise UsageError(
            "M553",
            f"log-probs of {checkpoint} differ from those of transformers by {found:.2g} on average",
            owner=OWNER,
            why=f"the bound is {bound:g}",
            fix="set --model-name to the model's architecture, or take --backend fsdp",
        )
    if is_last_stage() and place().reports:
        _log.info("log-probs differ from those of transformers by %.2g on average", found)


def _rows(vocabulary: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(vocabulary, (length,), generator=generator, device="cpu") for length in LENGTHS]


def _packed(rows: Sequence[torch.Tensor]) -> MicroBatch:
    lengths = [len(row) for row in rows]
    bounds = torch.tensor([0, *lengths], device="cpu").cumsum(0)
    index = [torch.arange(int(start), int(start) + length - 1) for start, length in zip(bounds, lengths, strict=False)]
    return MicroBatch(
        tokens=torch.cat(list(rows))[None],
        position_ids=torch.cat([torch.arange(length) for length in lengths])[None],
        rows=tuple(range(len(rows))),
        lengths=tuple(length - 1 for length in lengths),
        logit_index=torch.cat(index),
        targets=torch.cat([row[1:] for row in rows]),
        max_seqlen=max(lengths),
        cu_seqlens=bounds.to(torch.int32),
    )


def _of_transformers(
    checkpoint: Path, family: str, rows: Sequence[torch.Tensor], device: torch.device, compute: torch.dtype
) -> torch.Tensor | None:
    """Log-probs of all tokens but the first of each row; None when there is no room for the model."""
    size = sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
    if device.type == "cuda" and 2 * size > torch.cuda.mem_get_info(device)[0]:
        _log.warning("log-probs are not compared with those of transformers: there is no room for a second model")
        return None
    config = _config(checkpoint, family)
    model = AutoModelForCausalLM.from_pretrained(str(checkpoint), config=config, dtype=compute, local_files_only=True)
    model = model.to(device).eval()
    found = []
    with torch.no_grad():
        for row in rows:
            logits = model(input_ids=row[None].to(device), use_cache=False).logits[0, :-1].float()
            found.append(torch.log_softmax(logits, -1).gather(1, row[1:, None].to(device))[:, 0])
    del model
    gc.collect()
    accelerator_of(device).release_cache()
    return torch.cat(found)


def _config(checkpoint: Path, family: str) -> PretrainedConfig:
    """As transformers reads it; of a type that it does not know, as if it were one of the family."""
    said = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    register_families()
    if said.get("model_type") in CONFIG_MAPPING:
        return AutoConfig.from_pretrained(str(checkpoint), local_files_only=True)
    return AutoConfig.for_model(**{**said, "model_type": family})

"""The models of one rank: their parts, ready to compute micro-batches, and wrapped for training."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.moe import moe_utils

from miles_core.config import TrainingOptions
from miles_core.errors import UsageError
from miles_core.plugins.adhoc import load_function
from miles_megatron import models, value_head
from miles_megatron.alone import Alone
from miles_megatron.attention import PackedAttention
from miles_megatron.models import mtp
from miles_megatron.options import MegatronOptions
from miles_megatron.parallel import OWNER
from miles_megatron.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from miles_core.options import Config

if not hasattr(moe_utils, "te_general_gemm"):
    # megatron-core 0.16 asks for it by name where TransformerEngine is absent, too.
    moe_utils.te_general_gemm = None


@dataclass(frozen=True)
class Model:
    """One model.

    Attributes:
        chunks: ``GPTModel``, one for each virtual pipeline stage of this rank.
        architecture: what its HF config says.
        policy: what it computes.
        mtp_layers: of multi-token prediction that are trained, the first ones.
    """

    chunks: list[Any]
    architecture: Any
    policy: Policy
    mtp_layers: int = 0

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """Of all chunks."""
        for chunk in self.chunks:
            yield from chunk.parameters()


def precision(wanted: str, device: torch.device) -> torch.dtype:
    """The dtype of ``--megatron-precision``."""
    if wanted == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.float32 if wanted == "fp32" else torch.bfloat16


def build(config: Config, checkpoint: Path, device: torch.device, *, trainable: bool = True, critic: bool = False) -> Model:
    """A model of the checkpoint's architecture, with weights still to be loaded.

    Args:
        checkpoint: HF directory, of which ``config.json`` is read.
        device: of the computation.
        trainable: whether parameters take gradients.
        critic: replace the vocabulary head, see :mod:`miles_megatron.value_head`.

    Raises:
        UsageError: the architecture is not supported, or a chunk is not what it must be (M554).
    """
    options = config.get(MegatronOptions)
    compute = precision(options.precision, device)
    said = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    architecture = models.architecture(said, options.model_name, options.make_vocab_size_divisible_by)
    provider = load_function(config, MegatronOptions, "custom_model_provider_path")
    chunks: list[Any] = (
        _provided(provider, options)
        if provider is not None
        else models.build_chunks(
            architecture,
            tp=options.tensor_model_parallel_size,
            pp=options.pipeline_model_parallel_size,
            vpp=options.virtual_stages,
            cp=options.context_parallel_size,
            ep=options.expert_model_parallel_size,
            sequence_parallel=options.sequence_parallel,
            dtype=compute,
            core_attention=PackedAttention,
            **_recomputation(options),
        )
    )
    if trainable and not critic:
        # Other models neither train nor export them.
        models.add_mtp_layers(chunks, architecture, PackedAttention)
    trained = _trained_mtp_layers(architecture, options) if trainable and not critic else 0
    if critic:
        value_head.install(chunks, config.get(TrainingOptions).seed)
    for chunk in chunks:
        _mark_shared(chunk)
        chunk.to(device)
        chunk.requires_grad_(trainable)
        for layer in mtp.of(chunk)[trained:]:
            layer.requires_grad_(False)
        # Rows are of any length, except between interleaved stages, and nothing is divided by micro-batches, ranks or tokens.
        chunk.config.variable_seq_lengths = len(chunks) == 1
        chunk.config.calculate_per_token_loss = True
        chunk.config.batch_p2p_comm = device.type == "cuda"
        chunk.config.overlap_p2p_comm = False
    policy = Policy(chunks, architecture.vocab_size, compute=compute, compiled=options.compile)
    return Model(chunks, architecture, policy, trained)


def _trained_mtp_layers(architecture: models.Architecture, options: MegatronOptions) -> int:
    if not options.enable_mtp_training:
        return 0
    return architecture.mtp_layers if options.mtp_num_layers is None else options.mtp_num_layers


def _mark_shared(chunk: Any) -> None:
    """Say of each weight that tensor-parallel ranks share that they do, which decides on what counts in the gradient's norm.

    megatron-core says so as it draws initial weights, and nobody draws any here.
    """
    dims = ((ColumnParallelLinear, 0), (RowParallelLinear, 1), (VocabParallelEmbedding, 0))
    for module in chunk.modules():
        for kind, dim in dims:
            weight = getattr(module, "weight", None)
            if isinstance(module, kind) and weight is not None and not hasattr(weight, "tensor_model_parallel"):
                set_tensor_model_parallel_attributes(weight, is_parallel=True, dim=dim, stride=1)


def _provided(provider: Callable[[bool, bool, int | None], Any], options: MegatronOptions) -> list[Any]:
    """What a function of the user builds for each virtual stage of this rank.

    Raises:
        UsageError: that is no ``GPTModel`` (M554).
    """
    chunks = []
    for number in range(options.virtual_stages):
        stage = number if options.virtual_stages > 1 else None
        first, last = (
            test(ignore_virtual=stage is None, vp_stage=stage)
            for test in (parallel_state.is_pipeline_first_stage, parallel_state.is_pipeline_last_stage)
        )
        chunk = provider(first, last, stage)
        if not isinstance(chunk, GPTModel):
            what = f"{options.custom_model_provider_path} returned a {type(chunk).__name__}"
            raise UsageError("M554", what, owner=OWNER, fix="return a GPTModel of megatron-core with rotary positions")
        chunks.append(chunk)
    return chunks


def _recomputation(options: MegatronOptions) -> dict[str, Any]:
    full = options.recompute_granularity == "full"
    return {
        "recompute_granularity": options.recompute_granularity,
        "recompute_method": (options.recompute_method or "uniform") if full else None,
        "recompute_num_layers": (options.recompute_num_layers or 1) if full else None,
        "recompute_modules": (options.recompute_modules or ["core_attn"]) if options.recompute_granularity == "selective" else None,
    }


def shares_optimizer(options: MegatronOptions) -> bool:
    """Whether data-parallel ranks share out the optimizer's state: megatron-core does that with Adam only."""
    return options.use_distributed_optimizer and options.optimizer == "adam"


def wrapped(model: Model, options: MegatronOptions) -> list[Any]:
    """The model's chunks, whose gradients are summed in fp32 over data- and context-parallel ranks, if there are several."""
    overlap = options.overlap_grad_reduce or options.overlap_param_gather
    alone = dist.get_world_size() == 1 and options.compile and options.optimizer == "adam" and not overlap
    settings = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=shares_optimizer(options),
        overlap_grad_reduce=options.overlap_grad_reduce,
        overlap_param_gather=options.overlap_param_gather,
    )
    config = model.chunks[0].config
    kind = Alone if alone else DistributedDataParallel
    chunks = [kind(config, settings, chunk, disable_bucketing=number > 0) for number, chunk in enumerate(model.chunks)]
    config.finalize_model_grads_func = None if alone else _finalize
    if options.overlap_grad_reduce:
        config.no_sync_func = [chunk.no_sync for chunk in chunks] if len(chunks) > 1 else chunks[0].no_sync
    return chunks


def _finalize(chunks: list[Any], num_tokens: Any = None, **further: Any) -> None:
    """Sum gradients over ranks, and divide them by nothing."""
    del num_tokens
    finalize_model_grads(chunks, None, **further)

"""Which rank does what: megatron-core's process groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel

from miles_core.errors import UsageError
from miles_core.protocols.backend import Parallel
from miles_megatron.context import Context

if TYPE_CHECKING:
    from miles_megatron.options import MegatronOptions

OWNER = "miles-megatron"


def set_up(options: MegatronOptions, timeout_minutes: int, seed: int) -> None:
    """Make the process groups, and seed megatron-core's generators. Collective.

    Raises:
        UsageError: megatron-core has no device to compute on (M552).
    """
    try:
        torch.cuda.current_device()
    except (AssertionError, RuntimeError) as cause:
        why = str(cause).splitlines()[0]
        fix = "set --backend fsdp, which also runs on CPUs"
        raise UsageError("M552", "megatron-core finds no GPU", owner=OWNER, why=why, fix=fix) from cause
    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    virtual = options.virtual_stages if options.virtual_stages > 1 else None
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=options.tensor_model_parallel_size,
        pipeline_model_parallel_size=options.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=virtual,
        context_parallel_size=options.context_parallel_size,
        expert_model_parallel_size=options.expert_model_parallel_size,
        expert_tensor_parallel_size=options.expert_tensor_parallel_size,
        distributed_timeout_minutes=timeout_minutes,
        create_gloo_process_groups=False,
    )
    tensor_parallel.model_parallel_cuda_manual_seed(seed)


def context_ranks() -> Context | None:
    """The ranks that share this one's tokens; None if it has them for itself."""
    size = parallel_state.get_context_parallel_world_size()
    if size == 1:
        return None
    return Context(parallel_state.get_context_parallel_group(), parallel_state.get_context_parallel_rank(), size)


def place() -> Parallel:
    """This rank's place, as core sees it."""
    size = parallel_state.get_data_parallel_world_size()
    last = is_last_stage()
    first_of_its_kind = (
        parallel_state.get_data_parallel_rank() == 0
        and parallel_state.get_tensor_model_parallel_rank() == 0
        and parallel_state.get_context_parallel_rank() == 0
    )
    return Parallel(
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        data_rank=parallel_state.get_data_parallel_rank(),
        data_size=size,
        data_group=parallel_state.get_data_parallel_group() if size > 1 else None,
        computes_loss=last,
        reports=last and first_of_its_kind,
        context_size=parallel_state.get_context_parallel_world_size(),
    )


def is_last_stage() -> bool:
    """Whether this rank holds the end of the model."""
    return parallel_state.get_pipeline_model_parallel_rank() == parallel_state.get_pipeline_model_parallel_world_size() - 1  # type: ignore[no-any-return]

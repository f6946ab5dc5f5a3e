"""What the processes of these tests share: checkpoints, micro-batches and losses are those of the fsdp backend's tests."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from miles_megatron.options import MegatronOptions

from miles_core.config import ClusterOptions, TrainingOptions
from miles_core.options import Config
from miles_core.protocols.backend import ModelSpec

if TYPE_CHECKING:
    from miles_megatron.backend import MegatronBackend


def shared() -> ModuleType:
    """``helpers.py`` of the fsdp backend's tests."""
    name = "miles_fsdp_test_helpers"
    if name not in sys.modules:
        file = Path(__file__).parents[2] / "miles-fsdp" / "tests" / "helpers.py"
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


def write_checkpoints(root: Path) -> None:
    """``qwen3`` (tied), ``llama`` (untied), ``moe``, ``deep`` of four layers, and ``other``, which is near ``qwen3``."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tiny = shared()
    tiny.write_checkpoints(root)
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    deep = Qwen3Config(vocab_size=tiny.VOCABULARY, num_hidden_layers=4, initializer_range=0.2, tie_word_embeddings=True, **sizes)
    Qwen3ForCausalLM(deep).save_pretrained(root / "deep")
    other = Qwen3ForCausalLM.from_pretrained(root / "qwen3")
    with torch.no_grad():
        for param in other.parameters():
            param.mul_(1.1)
    other.save_pretrained(root / "other")


def make_backend(
    checkpoint: Path,
    *,
    spec: dict[str, Any] | None = None,
    device: str = "cpu",
    training: dict[str, Any] | None = None,
    **options: Any,
) -> MegatronBackend:
    """A backend that is set up, with these :class:`MegatronOptions`; not compared with transformers' model by default."""
    from miles_megatron.backend import MegatronBackend

    leave_groups()
    options.setdefault("check_log_probs", False)
    parts = TrainingOptions(**(training or {})), MegatronOptions(**options), ClusterOptions(device=device)
    backend = MegatronBackend(Config.of(*parts))
    backend.setup(ModelSpec(checkpoint=checkpoint, **{"train_steps": 10, **(spec or {})}))
    return backend


def leave_groups() -> None:
    """Destroy the process groups of the backend before, which is used no more: a thread of each wakes a hundred times a second."""
    import torch.distributed as dist
    from megatron.core import parallel_state

    groups = [group for group in parallel_state._global_process_group_list or () if group is not None]
    parallel_state.destroy_model_parallel()
    for group in groups:
        dist.destroy_process_group(group)


TP: dict[str, Any] = {"tensor_model_parallel_size": 2}
SP: dict[str, Any] = {**TP, "sequence_parallel": True}
PP: dict[str, Any] = {"pipeline_model_parallel_size": 2}
CP: dict[str, Any] = {"context_parallel_size": 2}
EP: dict[str, Any] = {"expert_model_parallel_size": 2}
ADAM = {"lr": 1e-2, "lr_warmup_iters": 1, "lr_decay_style": "cosine", "clip_grad": 0.5, "weight_decay": 0.1}

SPLITS: dict[str, tuple[str, dict[str, Any]]] = {
    "DP2": ("qwen3", {}),
    "TP2": ("qwen3", TP),
    "TP2 untied": ("llama", TP),
    "TP2 SP": ("qwen3", SP),
    "PP2": ("qwen3", PP),
    "PP2 virtual": ("deep", {**PP, "virtual_stages": 2}),
    "CP2": ("qwen3", CP),
    "EP2": ("moe", EP),
    "TP2 SP experts": ("moe", SP),
    "CP2 recomputed": ("llama", {**CP, "recompute_granularity": "selective"}),
    "PP2 recomputed": ("qwen3", {**PP, "recompute_granularity": "full", "recompute_method": "block"}),
}
"""Checkpoint and options by name."""

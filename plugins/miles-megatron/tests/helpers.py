"""What the processes of these tests share: checkpoints, micro-batches and losses are those of the fsdp backend's tests."""

from __future__ import annotations

import importlib.util
import json
import shutil
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


def write_mimo(root: Path) -> None:
    """``mimo``: four layers and two that predict further ahead; ``mimo_tied``: two and one, tied; ``mimo_lost`` lacks a tensor."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    further = {"initializer_range": 0.2, "vocab_size": shared().VOCABULARY, "max_position_embeddings": 128}
    for name, layers, ahead in (("mimo", 4, 2), ("mimo_tied", 2, 1)):
        config = Qwen2Config(num_hidden_layers=layers, tie_word_embeddings=name == "mimo_tied", **sizes, **further)
        model = Qwen2ForCausalLM(config)
        donor = model.model.layers[0].state_dict()
        model.save_pretrained(root / name)
        tensors = load_file(root / name / "model.safetensors")
        with torch.no_grad():
            tensors |= {key: torch.randn_like(tensor) for key, tensor in tensors.items() if key.endswith("bias")}
        for number in range(ahead):
            prefix = f"model.mtp_layers.{number}."
            tensors |= {prefix + key: torch.randn_like(tensor) * 0.2 for key, tensor in donor.items()}
            norms = ("token_layernorm", "hidden_layernorm", "final_layernorm", "input_layernorm", "post_attention_layernorm")
            tensors |= {f"{prefix}{norm}.weight": 1 + 0.2 * torch.randn(32) for norm in norms}
            tensors[f"{prefix}input_proj.weight"] = torch.randn(32, 64) * 0.2
        save_file(tensors, root / name / "model.safetensors", {"format": "pt"})
        file = root / name / "config.json"
        said = json.loads(file.read_text())
        said |= {"model_type": "mimo", "architectures": ["MiMoForCausalLM"], "num_nextn_predict_layers": ahead}
        file.write_text(json.dumps(said))
    shutil.copytree(root / "mimo", root / "mimo_lost")
    tensors = load_file(root / "mimo" / "model.safetensors")
    del tensors["model.mtp_layers.1.input_proj.weight"]
    save_file(tensors, root / "mimo_lost" / "model.safetensors", {"format": "pt"})


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
    "PP2 virtual compiled": ("deep", {**PP, "virtual_stages": 2, "compile": True}),
    "CP2": ("qwen3", CP),
    "EP2": ("moe", EP),
    "TP2 compiled": ("qwen3", {**TP, "compile": True}),
    "EP2 compiled": ("moe", {**EP, "compile": True}),
    "TP2 SP experts": ("moe", SP),
    "CP2 recomputed": ("llama", {**CP, "recompute_granularity": "selective"}),
    "PP2 recomputed": ("qwen3", {**PP, "recompute_granularity": "full", "recompute_method": "block"}),
}
"""Checkpoint and options by name."""

MTP_SPLITS: dict[str, tuple[str, dict[str, Any], dict[str, Any], int]] = {
    "DP2": ("mimo", {}, {}, 2),
    "DP2 tied": ("mimo_tied", {"overlap_grad_reduce": True}, {}, 3),
    "TP2": ("mimo", TP, {}, 1),
    "TP2 chunks": ("mimo_tied", TP, {"log_probs_chunk_size": 3}, 3),
    "TP2 SP": ("mimo", {**SP, "recompute_granularity": "full", "recompute_method": "block"}, {}, 3),
    "TP2 SP padded": ("mimo_tied", SP, {"qkv_format": "bshd"}, 2),
    "PP2": ("mimo", PP, {}, 2),
    "PP2 tied": ("mimo_tied", PP, {}, 8),
    "PP2 virtual": ("mimo", {**PP, "virtual_stages": 2}, {}, 3),
    "CP2": ("mimo", CP, {}, 3),
}
"""Checkpoint, options, options of training and micro-batches by name."""
MTP_TWICE = ("DP2", "TP2 SP", "PP2 virtual", "CP2")
"""Of these, which take a step without multi-token prediction, too."""


def mtp_samples() -> list[Any]:
    """Eight samples, of which one has two tokens, too few to predict one further ahead, and one is longer than the others."""
    longest = list(range(20, 45)), 9, [0.1 * i for i in range(9)]
    return [*shared().samples(6, seed=4), ([7, 8], 1, [0.4]), longest]


def mtp_mask(tokens: list[int], response: int) -> list[float]:
    """The loss mask of a sample: every fifth token has none."""
    return [float(token % 5 != 0) for token in tokens[-response:]]


def mtp_batch(chosen: list[Any], layout: str = "thd", mask: float = 1.0) -> Any:
    """A micro-batch with loss masks, and a packed one with padding."""
    import dataclasses

    import torch

    batch = shared().micro_batch(chosen, layout, padding=3 if layout == "thd" else 0)
    masks = torch.tensor([mask * each for tokens, response, _ in chosen for each in mtp_mask(tokens, response)])
    return dataclasses.replace(batch, data={**batch.data, "mask": masks})

"""One of the processes of ``test_bridge.py``: ``bridge_ranks.py RANK WORLD FOLDER``. Each writes what it found.

It exits with :data:`ABSENT` where megatron-bridge cannot be imported, and says why on its last line.
"""

from __future__ import annotations

import datetime
import sys
from pathlib import Path
from typing import Any

import cpu

cpu.apply()

import standin  # noqa: E402 - megatron-core is imported behind what lets it run here

standin.apply()

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from helpers import EP, PP, SP, TP, make_backend  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from miles_core.errors import UsageError  # noqa: E402

BRIDGE = {"megatron_to_hf_mode": "bridge"}
BUCKET = 4096
ABSENT = 77
GLOO_SCATTER = dist.scatter
ONE: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in ("llama", "biased", "qwen3", "moe")}
TWO: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"{name} TP2": (name, TP) for name in ("llama", "biased", "qwen3")},
    **{f"{name} PP2": (name, PP) for name in ("llama", "biased", "qwen3", "moe")},
    "moe TP2 SP": ("moe", SP),
    "moe EP2": ("moe", EP),
    "moe EP2 TP1 experts": ("moe", {**EP, "expert_tensor_parallel_size": 1}),
    "deep PP2 virtual": ("deep", {**PP, "virtual_stages": 2}),
    "qwen3 TP2 little padding": ("qwen3", {**TP, "make_vocab_size_divisible_by": 1}),
}
"""Folder and options by name, for one and for two ranks."""


def scatter(tensor: torch.Tensor, parts: list[torch.Tensor] | None = None, **further: Any) -> Any:
    """Of columns, too: parts that had come to a GPU would be contiguous, and gloo reads a CPU's as if they were."""
    return GLOO_SCATTER(tensor, parts and [part.contiguous() for part in parts], **further)


def tensors(backend: Any) -> dict[str, torch.Tensor]:
    """This rank's parameters by their names, with the numbers of their chunks."""
    chunks = backend._models["actor"].chunks
    return {f"{i} {name}": param.detach().clone() for i, chunk in enumerate(chunks) for name, param in chunk.named_parameters()}


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def cases(root: Path, chosen: dict[str, tuple[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """What is loaded, published and written by megatron-bridge, against what is by the tables."""
    found = {}
    for name, (model, options) in chosen.items():
        by_tables = make_backend(root / model, **options)
        by_table, published = tensors(by_tables), dict(by_tables.export_weights())
        backend = make_backend(root / model, **{"check_log_probs": True, **options, **BRIDGE})
        actor, loaded = backend._models["actor"], tensors(backend)
        buckets = list(backend._conversion.export_hf(actor.chunks, actor.architecture, BUCKET))
        folder = root / f"bridged-{dist.get_world_size()}-{name.replace(' ', '-')}"
        backend.export_hf(folder)
        dist.barrier()
        with torch.no_grad():
            for param in actor.parameters():
                param.zero_()
        pairs = [pair for bucket in buckets for pair in bucket]
        found[name] = {
            "conversion": type(backend._conversion).__name__,
            "loaded": same(loaded, by_table),
            # Training goes on while what was published is on its way.
            "published": same(dict(pairs), published),
            "once": len(pairs) == len(published),
            "bucket": max(sum(tensor.nbytes for _, tensor in bucket) for bucket in buckets if len(bucket) > 1),
            "buckets": len(buckets),
            "folder": same(load_file(folder / "model.safetensors"), published),
            "config": (folder / "config.json").is_file(),
        }
    return found


def refusals(root: Path) -> dict[str, tuple[str, str]]:
    """Code and text of what is said of what megatron-bridge cannot do."""
    calls: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
        "critic": ("qwen3", {"value_head": True}, {}),
        "family": ("mimo", {}, {}),
        "name": ("named", {}, {"model_name": "qwen3"}),
        "missing": ("missing", {}, {}),
        "layers": ("mixed", {}, {}),
    }
    found = {}
    for name, (model, spec, options) in calls.items():
        try:
            make_backend(root / model, spec=spec, **BRIDGE, **options)
        except UsageError as error:
            found[name] = error.code, str(error)
    return found


def main(rank: int, world: int, root: Path) -> None:
    try:
        import megatron.bridge  # noqa: F401
    except Exception as error:
        sys.stderr.write(f"\nmegatron-bridge cannot be imported: {error}\n")
        sys.exit(ABSENT)
    torch.set_num_threads(1)
    dist.scatter = scatter
    minute = datetime.timedelta(seconds=60)
    init = f"file://{root}/init-bridge-{world}"
    dist.init_process_group("gloo", init_method=init, rank=rank, world_size=world, timeout=minute)
    found = {"cases": cases(root, ONE if world == 1 else TWO), "refusals": refusals(root)}
    torch.save(found, root / f"bridge-{world}-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))

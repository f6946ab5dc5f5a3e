"""One of the processes of ``test_mapping.py``: ``mapping_ranks.py RANK WORLD FOLDER``. Each writes what it found."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path
from typing import Any

import cpu

cpu.apply()

import helpers  # noqa: E402 - megatron-core is imported behind what lets it run here
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from helpers import EP, PP, SP, SPLITS, TP, make_backend  # noqa: E402
from miles_megatron import mapping  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from miles_core.errors import UsageError  # noqa: E402

tiny = helpers.shared()
LONG = ([5 * i % tiny.VOCABULARY for i in range(300)], 7, [1.0] * 7)
"""Long enough for scaled rotary angles to differ from others."""
ROWS = [*tiny.samples(4), LONG]
BUCKET = 4096
PROVIDERS = Path(__file__).with_name("providers.py")
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **SPLITS,
    "PP2 untied": ("llama", PP),
    "EP2 TP1 experts": ("moe", {**EP, "expert_tensor_parallel_size": 1}),
    **{f"{model} TP1": (model, {}) for model in ("llama", "moe", "biased", "llama3", "linear", "mixed")},
    **{f"{model} TP2 SP": (model, SP) for model in ("biased", "llama3", "linear", "mixed")},
    "biased TP2": ("biased", TP),
    "biased PP2": ("biased", PP),
    "mixed EP2": ("mixed", EP),
    "mixed PP2": ("mixed", PP),
    "a row of padding": ("qwen3", {**TP, "make_vocab_size_divisible_by": 1}),
    "another name": ("named", {**SP, "model_name": "qwen3", "check_log_probs": True}),
    "a provider PP2": ("llama", {**PP, "custom_model_provider_path": f"{PROVIDERS}:llama", "check_log_probs": True}),
    "a rank of padding": ("llama", {**TP, "make_vocab_size_divisible_by": 256}),
}
"""Folder and options by name; two ranks without options are data parallel, so that each has the whole model."""


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def cases(root: Path) -> dict[str, Any]:
    """What is exported in small buckets, and as an HF directory, against what was loaded; and log-probs in between."""
    found = {}
    for name, (model, options) in CASES.items():
        backend = make_backend(root / model, **options)
        actor, wanted = backend._models["actor"], stored(root / model)
        outputs = backend.forward([tiny.micro_batch(ROWS)], tiny.REQUEST)
        buckets = list(mapping.export_hf(actor.chunks, actor.architecture, BUCKET))
        names = [each for bucket in buckets for each, _ in bucket]
        folder = root / f"exported-{name.replace(' ', '-')}"
        mapping.save_hf(mapping.export_hf(actor.chunks, actor.architecture, BUCKET), folder, root / model)
        dist.barrier()
        found[name] = {
            "weights": same(dict(pair for bucket in buckets for pair in bucket), wanted),
            "once": len(names) == len(set(names)),
            "buckets": len(buckets),
            "folder": same(stored(folder), wanted),
            "model": model,
            "log_probs": None if outputs is None else outputs[0].log_probs,
        }
    return found


def refusals(root: Path) -> dict[str, tuple[str, str]]:
    """Code and text of what is said of checkpoints that are not the model's."""
    found = {}
    for folder in sorted((root / "broken").iterdir()):
        try:
            make_backend(folder, **SP)
        except UsageError as error:
            found[folder.name] = error.code, str(error)
    return found


def providers(root: Path) -> dict[str, str]:
    """Codes of what is said of functions that build something else."""
    found = {}
    for name in ("other_angles", "own_attention", "no_model"):
        try:
            make_backend(root / "llama", custom_model_provider_path=f"{PROVIDERS}:{name}", check_log_probs=True)
        except UsageError as error:
            found[name] = error.code
    return found


def main(rank: int, world: int, root: Path) -> None:
    torch.set_num_threads(1)
    minute = datetime.timedelta(seconds=60)
    init = f"file://{root}/init-mapping"
    dist.init_process_group("gloo", init_method=init, rank=rank, world_size=world, timeout=minute)
    parts = (cases, refusals, providers)
    torch.save({part.__name__: part(root) for part in parts}, root / f"mapping-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))

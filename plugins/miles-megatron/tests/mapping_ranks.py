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
ROWS = tiny.samples(4)
BUCKET = 4096
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **SPLITS,
    "PP2 untied": ("llama", PP),
    "EP2 TP1 experts": ("moe", {**EP, "expert_tensor_parallel_size": 1}),
    **{f"{model} TP2 SP": (model, SP) for model in ("biased", "llama3", "linear")},
    "biased PP2": ("biased", PP),
}


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def round_trips(root: Path) -> dict[str, Any]:
    """What is exported in small buckets, and as an HF directory, against what was loaded."""
    found = {}
    for name, (model, options) in CASES.items():
        backend = make_backend(root / model, **options)
        actor, wanted = backend._models["actor"], stored(root / model)
        buckets = list(mapping.export_hf(actor.chunks, actor.architecture, BUCKET))
        names = [each for bucket in buckets for each, _ in bucket]
        folder = root / f"exported-{name.replace(' ', '-')}"
        mapping.save_hf(actor.chunks, actor.architecture, folder, root / model)
        dist.barrier()
        found[name] = {
            "weights": same(dict(pair for bucket in buckets for pair in bucket), wanted),
            "once": len(names) == len(set(names)),
            "buckets": len(buckets),
            "folder": same(stored(folder), wanted),
        }
    return found


def log_probs(root: Path) -> dict[str, Any]:
    """Of models that the other tests do not have."""
    found = {}
    for name in ("biased TP2 SP", "llama3 TP2 SP", "linear TP2 SP", "biased PP2"):
        model, options = CASES[name]
        outputs = make_backend(root / model, **options).forward([tiny.micro_batch(ROWS)], tiny.REQUEST)
        found[name] = model, None if outputs is None else outputs[0].log_probs
    return found


def refusals(root: Path) -> dict[str, tuple[str, str]]:
    """Code and text of what is said of checkpoints that are not the model's."""
    found = {}
    for name in ("missing", "extra", "narrow"):
        try:
            make_backend(root / name, **TP)
        except UsageError as error:
            found[name] = error.code, str(error)
    return found


def main(rank: int, world: int, root: Path) -> None:
    torch.set_num_threads(1)
    minute = datetime.timedelta(seconds=60)
    init = f"file://{root}/init-mapping"
    dist.init_process_group("gloo", init_method=init, rank=rank, world_size=world, timeout=minute)
    parts = (round_trips, log_probs, refusals)
    torch.save({part.__name__: part(root) for part in parts}, root / f"mapping-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))

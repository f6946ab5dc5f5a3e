"""One of the processes of ``test_two_ranks.py``: ``two_ranks.py RANK WORLD FOLDER``. Rank 0 writes what it found."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path

import helpers
import torch
import torch.distributed as dist

from miles_core.protocols.backend import LossCallback
from miles_core.training.batch import MicroBatch
from miles_fsdp.options import FsdpOptions

ROWS = helpers.samples(8)
ADAM = {"lr": 1e-2, "lr_warmup_iters": 1, "lr_decay_style": "cosine"}


def share(rank: int, world: int, layout: str, splits: int = 2) -> list[MicroBatch]:
    """This rank's rows, of every second one, as micro-batches."""
    mine = ROWS[rank::world]
    size = len(mine) // splits
    return [helpers.micro_batch(mine[i * size : (i + 1) * size], layout) for i in range(splits)]


def failing(rank: int) -> LossCallback:
    """A loss that breaks on one rank only."""
    return lambda batch, outputs: helpers.loss(batch, outputs) * (float("inf") if rank == 1 else 1.0)


def gradients(root: Path, rank: int, world: int) -> dict[str, dict[str, torch.Tensor]]:
    """The gradients of all rows, summed over ranks, for several ways to compute them."""
    found = {}
    for model in ("qwen3", "llama"):
        for layout, splits, options in (
            ("thd", 2, FsdpOptions(optimizer="sgd")),
            ("bshd", 4, FsdpOptions(optimizer="sgd")),
            ("thd", 1, FsdpOptions(optimizer="sgd", gradient_checkpointing=True)),
            ("thd", 2, FsdpOptions(optimizer="sgd", cpu_offload=True)),
            ("thd", 2, FsdpOptions(optimizer="sgd", replicate_size=2)),
        ):
            backend = helpers.make_backend(root / model, options=options, **helpers.PLAIN_SGD)
            name = f"{model} {layout} {splits} {options}"
            found[name] = helpers.gradients(backend, share(rank, world, layout, splits))
    return found


def main(rank: int, world: int, root: Path) -> None:
    torch.set_num_threads(1)
    minute = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{root}/init", rank=rank, world_size=world, timeout=minute)
    results: dict[str, object] = {"gradients": gradients(root, rank, world)}
    results["routed"] = {}
    for recompute in (False, True):
        options = FsdpOptions(optimizer="sgd", gradient_checkpointing=recompute)
        backend = helpers.make_backend(root / "moe", options=options, **helpers.PLAIN_SGD)
        batches = [helpers.routed(batch) for batch in share(rank, world, "thd")]
        results["routed"][recompute] = helpers.gradients(backend, batches)

    critic = helpers.make_backend(
        root / "qwen3", options=FsdpOptions(optimizer="sgd"), spec={"value_head": True}, **helpers.PLAIN_SGD
    )
    values = critic.forward(share(rank, world, "thd"), helpers.VALUES)
    results["values"] = torch.cat([outputs.values for outputs in values])
    results["critic gradients"] = helpers.gradients(critic, share(rank, world, "thd"), critic=True)
    critic.export_hf(root / "critic")

    backend = helpers.make_backend(root / "qwen3", spec={"copies": ("ref",), "models": (("teacher", root / "llama"),)}, **ADAM)
    place = backend.parallel
    results["place"] = (place.data_size, place.reports, place.exports, place.data_group is not None)
    forward = backend.forward(share(rank, world, "thd"), helpers.REQUEST)
    results["log_probs"] = torch.cat([outputs.log_probs for outputs in forward])
    results["reports"] = [backend.train_step(share(rank, world, "thd"), helpers.REQUEST, helpers.loss) for _ in range(2)]
    results["skipped"] = backend.train_step(share(rank, world, "thd"), helpers.REQUEST, failing(rank)).skipped
    saved = root / "saved"
    if rank == 0:
        saved.mkdir()
    dist.barrier()
    backend.save(saved)
    results["saved"] = helpers.weights_of(backend)
    held_folder = root / "saved-held"
    if rank == 0:
        held_folder.mkdir()
    dist.barrier()
    held = backend.hold(held_folder)
    results["next"] = backend.train_step(share(rank, world, "thd"), helpers.REQUEST, helpers.loss)
    results["stepped"] = helpers.weights_of(backend)
    parts = [None] * world
    dist.all_gather_object(parts, held.write())
    if rank == 0:
        held.complete(parts)
    dist.barrier()
    resumed = helpers.make_backend(root / "qwen3", **ADAM)
    resumed.load(saved)
    results["next resumed"] = resumed.train_step(share(rank, world, "thd"), helpers.REQUEST, helpers.loss)
    results["stepped resumed"] = helpers.weights_of(resumed)

    copied = helpers.make_backend(root / "qwen3", options=FsdpOptions(replicate_size=2), **ADAM)
    copied.load(saved)
    results["next copied"] = copied.train_step(share(rank, world, "thd"), helpers.REQUEST, helpers.loss)
    results["stepped copied"] = helpers.weights_of(copied)
    saved_copied = root / "saved-copied"
    if rank == 0:
        saved_copied.mkdir()
    dist.barrier()
    copied.save(saved_copied)
    again = helpers.make_backend(root / "qwen3", **ADAM)
    again.load(saved_copied)
    results["copied and shared out"] = helpers.weights_of(again)

    resumed.load(root / "saved-alone")
    results["of one rank"] = helpers.weights_of(resumed)

    backend.export_hf(root / "exported")
    start = torch.cat([o.log_probs for o in backend.forward(share(rank, world, "thd"), helpers.REQUEST, weights="ref")])
    results["ref"] = start
    teacher = backend.forward(share(rank, world, "bshd"), helpers.REQUEST, weights="teacher")
    results["teacher"] = torch.cat([outputs.log_probs for outputs in teacher])
    backend.copy_weights("actor", "ref")
    actor, copy = (backend.forward(share(rank, world, "bshd"), helpers.REQUEST, weights=name) for name in ("actor", "ref"))
    results["copied"] = all(torch.equal(a.log_probs, b.log_probs) for a, b in zip(actor, copy, strict=True))
    results["moe"] = helpers.weights_of(helpers.make_backend(root / "moe"))
    if rank == 0:
        torch.save(results, root / "results.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))

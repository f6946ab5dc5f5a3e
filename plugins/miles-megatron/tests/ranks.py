"""One of the processes of ``test_ranks.py``: ``ranks.py RANK WORLD FOLDER``. Each writes what it found."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cpu

cpu.apply()

import helpers  # noqa: E402 - megatron-core is imported behind what lets it run here
import mtp_ranks  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from helpers import ADAM, CP, EP, PP, SP, SPLITS, TP, make_backend  # noqa: E402

from miles_core.errors import RunError, UsageError  # noqa: E402
from miles_core.protocols.backend import OutputRequest, Parallel  # noqa: E402
from miles_core.training.batch import MicroBatch, ModelOutputs  # noqa: E402
from miles_fsdp.options import FsdpOptions  # noqa: E402

tiny = helpers.shared()
ROWS = tiny.samples(8)
SGD: dict[str, Any] = {"training": tiny.PLAIN_SGD, "optimizer": "sgd"}
CHUNKED = OutputRequest(entropy=True, temperature=0.7, chunk_size=3)
LOGITS = OutputRequest(entropy=True, logits=True, temperature=0.7)


def share(place: Parallel, layout: str = "thd") -> list[MicroBatch]:
    """This rank's rows as three micro-batches, which virtual stages cannot share out evenly."""
    mine = ROWS[place.data_rank :: place.data_size]
    cut = max(len(mine) // 3, 1)
    return [tiny.micro_batch(part, layout) for part in (mine[:cut], mine[cut : 2 * cut], mine[2 * cut :])]


def joined(outputs: Sequence[ModelOutputs] | None, name: str) -> torch.Tensor | None:
    return None if outputs is None else torch.cat([getattr(each, name) for each in outputs])


def distance(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """The largest difference of any weight."""
    assert found.keys() == wanted.keys(), found.keys() ^ wanted.keys()
    return max((found[name] - wanted[name]).abs().max().item() for name in wanted)


def fsdp_gradients(checkpoint: Path, request: OutputRequest, loss: Callable[..., torch.Tensor], *, routed: bool = False) -> Any:
    backend = tiny.make_backend(checkpoint, options=FsdpOptions(optimizer="sgd"), **tiny.PLAIN_SGD)
    return gradients(backend, request, loss, routed=routed)


def gradients(backend: Any, request: OutputRequest, loss: Callable[..., torch.Tensor], *, routed: bool = False) -> Any:
    """The gradient of one step, read off the weights that SGD without clipping moves."""
    before = tiny.weights_of(backend)
    batches = [tiny.routed(batch) if routed else batch for batch in share(backend.parallel)]
    backend.train_step(batches, request, loss)
    return {name: (before[name] - after) / tiny.RATE for name, after in backend.export_weights()}


def of_all(batch: MicroBatch, outputs: ModelOutputs) -> torch.Tensor:
    """A loss of log-probs, entropy and, where they are, logits."""
    weight = batch.data["weight"]
    scalar = tiny.token_loss(outputs.log_probs, outputs.entropy, weight)
    if outputs.logits is not None:
        assert outputs.logits.shape == (len(weight), tiny.VOCABULARY)
        scalar = scalar + 0.01 * (outputs.logits.float().square().sum(-1) * weight).sum()
    return scalar


def splits(root: Path) -> dict[str, Any]:
    """Log-probs, entropy and gradients for every way to share the work."""
    found = {}
    for name, (model, options) in SPLITS.items():
        backend = make_backend(root / model, **SGD, **{"check_log_probs": name in ("TP2 SP", "PP2", "EP2"), **options})
        outputs = backend.forward(share(backend.parallel), tiny.REQUEST)
        place = dataclasses.replace(backend.parallel, data_group=None)
        said = {key: joined(outputs, key) for key in ("log_probs", "entropy")}
        found[name] = {"place": place, **said, "gradients": gradients(backend, tiny.REQUEST, tiny.loss)}
    return found


def steps(root: Path) -> dict[str, Any]:
    """Three steps of Adam, against those of the fsdp backend."""
    cases: dict[str, tuple[str, str, dict[str, Any]]] = {
        "whole optimizer": ("qwen3", "thd", {"use_distributed_optimizer": False}),
        "overlap": ("qwen3", "thd", {"overlap_grad_reduce": True, "overlap_param_gather": True}),
        "compiled": ("qwen3", "thd", {"compile": True}),
        "whole optimizer, compiled": ("qwen3", "thd", {"use_distributed_optimizer": False, "compile": True}),
        "TP2 SP": ("qwen3", "thd", SP),
        "PP2": ("qwen3", "thd", PP),
        "EP2": ("moe", "thd", EP),
        "padded rows": ("qwen3", "bshd", SP),
    }
    wanted = {}
    for model in ("qwen3", "moe"):
        backend = tiny.make_backend(root / model, **ADAM)
        reports = [backend.train_step(share(backend.parallel), tiny.REQUEST, tiny.loss) for _ in range(3)]
        wanted[model] = reports, tiny.weights_of(backend)
    found = {}
    for name, (model, layout, options) in cases.items():
        backend = make_backend(root / model, training={**ADAM, "qkv_format": layout}, **options)
        reports = [backend.train_step(share(backend.parallel, layout), tiny.REQUEST, tiny.loss) for _ in range(3)]
        found[name] = reports, wanted[model][0], distance(tiny.weights_of(backend), wanted[model][1])
    broken = lambda batch, outputs: tiny.loss(batch, outputs) * float("inf")  # noqa: E731
    before = tiny.weights_of(backend)
    skipped = backend.train_step(share(backend.parallel), tiny.REQUEST, broken)
    found["skipped"] = skipped.skipped, distance(tiny.weights_of(backend), before)
    return found


def requests(root: Path) -> dict[str, float]:
    """Gradients through chunks and through gathered logits, against those of the fsdp backend."""
    found = {}
    for name, request in (("chunks", CHUNKED), ("logits", LOGITS)):
        wanted = fsdp_gradients(root / "qwen3", request, of_all)
        for split, options in (("TP2", TP), ("CP2", CP)):
            backend = make_backend(root / "qwen3", **SGD, **options)
            found[f"{name} {split}"] = tiny.furthest(gradients(backend, request, of_all), wanted)
    return found


def critics(root: Path) -> dict[str, Any]:
    """Steps of a critic, against the fsdp backend's."""
    spec = {"value_head": True}
    other = tiny.make_backend(root / "qwen3", spec=spec, **ADAM)
    wanted = [other.train_step(share(other.parallel), tiny.VALUES, tiny.value_loss).grad_norm for _ in range(2)]
    weights = tiny.weights_of(other)
    found = {}
    for name, options in (("TP2 SP", SP), ("PP2", PP), ("CP2", CP)):
        backend = make_backend(root / "qwen3", training=ADAM, spec=spec, **options)
        values = joined(backend.forward(share(backend.parallel), tiny.VALUES), "values")
        norms = [backend.train_step(share(backend.parallel), tiny.VALUES, tiny.value_loss).grad_norm for _ in range(2)]
        found[name] = norms, wanted, distance(tiny.weights_of(backend), weights), None if values is None else len(values)
    return found


def copies(root: Path) -> dict[str, bool]:
    """What becomes of copies and other models while the actor is trained."""
    found = {}
    for name, options in (("PP2", PP), ("TP2 on the device", {**TP, "disable_weights_backuper": True})):
        spec = {
            "copies": ("ref", "old_actor"),
            "copy_sources": (("old_actor", root / "other"),),
            "models": (("teacher", root / "llama"),),
        }
        backend = make_backend(root / "qwen3", training=ADAM, spec=spec, **options)
        batches = share(backend.parallel)

        def log_probs(weights: str, backend: Any = backend, batches: Any = batches) -> torch.Tensor:
            outputs = joined(backend.forward(batches, tiny.REQUEST, weights=weights), "log_probs")
            return torch.zeros(1) if outputs is None else outputs

        def step(backend: Any = backend, batches: Any = batches) -> None:
            backend.train_step(batches, tiny.REQUEST, tiny.loss)

        first = log_probs("ref")
        teacher, old = log_probs("teacher"), log_probs("old_actor")
        for _ in range(2):
            step()
        actor = log_probs("actor")
        last = backend.parallel.computes_loss
        again = log_probs("ref"), log_probs("actor")
        found[f"{name}: a copy stays"] = torch.equal(again[0], first) and torch.equal(again[1], actor)
        found[f"{name}: models differ"] = not last or len({float(x.sum()) for x in (first, teacher, old, actor)}) == 4
        backend.copy_weights("actor", "ref")
        found[f"{name}: overwritten"] = torch.equal(log_probs("ref"), actor)
        backend.copy_weights("old_actor", "ref")
        found[f"{name}: copy to copy"] = torch.equal(log_probs("ref"), old)
        backend.copy_weights("old_actor", "actor")
        found[f"{name}: taken back"] = torch.equal(log_probs("actor"), old)
        backend.offload()
        found[f"{name}: offloaded"] = _code(functools.partial(log_probs, "actor")) == "M431"
        backend.onload()
        backend.reset_optimizer()
        step()
        after = log_probs("actor")
        found[f"{name}: goes on"] = not last or not torch.equal(after, old)
    return found


def routes(root: Path) -> dict[str, Any]:
    """Recorded routes and gradients with replayed ones, against the fsdp backend's."""
    wanted = fsdp_gradients(root / "moe", tiny.REQUEST, tiny.loss, routed=True)
    other = tiny.make_backend(root / "moe")
    recording = dataclasses.replace(tiny.REQUEST, routes=True)
    found = {}
    cases: dict[str, dict[str, Any]] = {
        "EP2": EP,
        "TP2 SP": SP,
        "CP2": CP,
        "PP2 recomputed": {**PP, "recompute_granularity": "full"},
    }
    for name, options in cases.items():
        backend = make_backend(root / "moe", **SGD, **options)
        batches = share(backend.parallel)
        here = [each.routes for each in backend.forward(batches, recording) or ()]
        # The fsdp backend computes on this rank what the other one does too, where both have the same rows.
        there = [each.routes for each in other.forward(batches, recording)]
        held = [mine != -1 for mine in here]
        same = all(
            torch.equal(torch.where(which, mine, -1).sort(-1).values, torch.where(which, theirs, -1).sort(-1).values)
            for mine, theirs, which in zip(here, there, held, strict=True)
        )
        layers = sorted({int(layer) for which in held for layer in which.any(0).any(-1).nonzero()})
        replayed = gradients(backend, tiny.REQUEST, tiny.loss, routed=True)
        found[name] = same, layers, tiny.furthest(replayed, wanted)
    return found


def states(root: Path) -> dict[str, Any]:
    """A state that is taken up on the same and on other parallel sizes: whether weights are equal, and how far the next step is."""
    found = {}
    cases: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
        "DP2 to DP2": ("qwen3", {}, {}),
        "TP2 SP to TP2 SP": ("qwen3", SP, SP),
        "DP2 to TP2 SP": ("qwen3", {"compile": True}, SP),
        "TP2 SP to PP2": ("qwen3", SP, PP),
        "PP2 to DP2 without sharing": ("qwen3", PP, {"use_distributed_optimizer": False, "compile": True}),
        "EP2 to TP2 SP": ("moe", EP, SP),
    }
    for number, (name, (model, before, after)) in enumerate(cases.items()):
        folder, beside = root / f"state-{number}", root / f"held-{number}"
        if dist.get_rank() == 0:
            folder.mkdir()
            beside.mkdir()
        dist.barrier()
        spec = {"copies": ("ref",)}
        backend = make_backend(root / model, training=ADAM, spec=spec, **before)
        for _ in range(2):
            backend.train_step(share(backend.parallel), tiny.REQUEST, tiny.loss)
        backend.copy_weights("actor", "ref")
        backend.save(folder)
        held = backend.hold(beside)
        saved = tiny.weights_of(backend)
        report = backend.train_step(share(backend.parallel), tiny.REQUEST, tiny.loss)
        wanted = tiny.weights_of(backend)
        held.complete([held.write()])
        other = make_backend(root / model, training=ADAM, spec=spec, **after)
        other.load(folder)
        equal = distance(tiny.weights_of(other), saved) == 0
        again = other.train_step(share(other.parallel), tiny.REQUEST, tiny.loss)
        same_rate = report.learning_rates == again.learning_rates
        moved = distance(wanted, saved)
        other.copy_weights("ref", "actor")
        copied = distance(tiny.weights_of(other), saved) == 0
        other.load(folder)
        other.train_step(share(other.parallel), tiny.REQUEST, tiny.loss)
        found[name] = equal and same_rate and copied, distance(tiny.weights_of(other), wanted), moved
    codes = []
    for model, options in (("llama", {}), ("qwen3", {"optimizer": "sgd"})):
        try:
            make_backend(root / model, training=ADAM, spec={"copies": ("ref",)}, **options).load(root / "state-0")
        except UsageError as error:
            codes.append(error.code)
    found["refused"] = codes
    return found


def refusals(root: Path) -> dict[str, str]:
    """Codes of errors."""
    backend = make_backend(root / "qwen3", **TP)
    calls: dict[str, Callable[[], object]] = {
        "unknown weights": lambda: backend.forward(share(backend.parallel), tiny.REQUEST, weights="nobody"),
        "a loss of nothing": lambda: backend.train_step(share(backend.parallel), tiny.REQUEST, lambda *_: torch.zeros(())),
        "no routers": lambda: backend.forward(share(backend.parallel), dataclasses.replace(tiny.REQUEST, routes=True)),
    }
    return {name: _code(call) for name, call in calls.items()}


def _code(call: Callable[[], object]) -> str:
    """The code of the error that a call raises."""
    try:
        call()
    except (RunError, UsageError) as error:
        return error.code
    return ""


def main(rank: int, world: int, root: Path) -> None:
    torch.set_num_threads(1)
    minute = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{root}/init-{world}", rank=rank, world_size=world, timeout=minute)
    parts = (splits, steps, requests, critics, copies, routes, states, refusals, *mtp_ranks.PARTS)
    torch.save({part.__name__: part(root) for part in parts}, root / f"results-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))

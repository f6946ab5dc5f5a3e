"""What the processes of ``ranks.py`` find for ``test_mtp.py``: multi-token prediction."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import helpers
import torch
import torch.distributed as dist
from helpers import ADAM, CP, MTP_SPLITS, MTP_TWICE, PP, SP, make_backend, mtp_batch, mtp_samples
from safetensors.torch import load_file

from miles_core.errors import UsageError

tiny = helpers.shared()
ROWS = mtp_samples()
ON: dict[str, Any] = {"enable_mtp_training": True, "mtp_loss_scaling_factor": 0.7}
SGD: dict[str, Any] = {"training": tiny.PLAIN_SGD, "optimizer": "sgd"}
OVERLAP = {"overlap_grad_reduce": True, "overlap_param_gather": True}
AHEAD = "model.mtp_layers."


def shared_out(backend: Any, count: int = 3, layout: str = "thd") -> list[Any]:
    """This rank's rows as so many micro-batches."""
    mine = ROWS[backend.parallel.data_rank :: backend.parallel.data_size]
    cut = len(mine) // count
    bounds = [*range(0, cut * count, cut), len(mine)]
    return [mtp_batch(mine[start:stop], layout) for start, stop in itertools.pairwise(bounds)]


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], ahead: bool | None = None) -> bool:
    """Whether tensors are equal bit for bit: all, those of multi-token prediction, or the others."""
    names = [name for name in wanted if ahead is None or name.startswith(AHEAD) == ahead]
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in names)


def mtp_splits(root: Path) -> dict[str, Any]:
    """What one step without clipping makes of the weights, with and without multi-token prediction, for every way to share."""
    found: dict[str, Any] = {}
    for name, (model, options, training, count) in MTP_SPLITS.items():
        layout = training.get("qkv_format", "thd")
        settings = {"training": {**tiny.PLAIN_SGD, **training}, "optimizer": "sgd", **options}
        each = found[name] = {}
        if name in MTP_TWICE:
            backend = make_backend(root / model, **settings, check_log_probs=name == "TP2 SP")
            before = tiny.weights_of(backend)
            backend.train_step(shared_out(backend, count, layout), tiny.REQUEST, tiny.loss)
            without = tiny.weights_of(backend)
            each["frozen"] = same(without, before, ahead=True)
        backend = make_backend(root / model, **settings, **ON)
        before, batches = tiny.weights_of(backend), shared_out(backend, count, layout)
        outputs = backend.forward(batches, tiny.REQUEST)
        report = backend.train_step(batches, tiny.REQUEST, tiny.loss)
        after = tiny.weights_of(backend)
        if name in MTP_TWICE:
            each["trunk"] = same(after, without, ahead=False)
        each["log_probs"] = None if outputs is None else torch.cat([one.log_probs for one in outputs])
        each["loaded"] = same(before, stored(root / model))
        each["gradients"] = {key: (before[key] - after[key]) / tiny.RATE for key in before if key.startswith(AHEAD)}
        each["metrics"] = dict(report.metrics)
        each["data"] = backend.parallel.data_rank, backend.parallel.data_size
    return found


def mtp_states(root: Path) -> dict[str, Any]:
    """Steps of Adam, what is exported behind them, and a state that is taken up."""
    found: dict[str, Any] = {}
    for number, (name, before, after) in enumerate(
        (("DP2", OVERLAP, OVERLAP), ("PP2 to TP2 SP", {**PP, **OVERLAP}, SP), ("off to on", {}, {}))
    ):
        folder = root / f"mtp-state-{number}"
        if dist.get_rank() == 0:
            folder.mkdir()
        dist.barrier()
        first = {} if name == "off to on" else ON
        backend = make_backend(root / "mimo", training=ADAM, **before, **first)
        batches = shared_out(backend)
        losses = [backend.train_step(batches, tiny.REQUEST, tiny.loss).metrics.get("mtp_loss") for _ in range(3)]
        backend.save(folder)
        saved = tiny.weights_of(backend)
        wanted = None
        if first:
            backend.train_step(batches, tiny.REQUEST, tiny.loss)
            wanted = tiny.weights_of(backend)
        other = make_backend(root / "mimo", training=ADAM, **after, **ON)
        other.load(folder)
        taken = same(tiny.weights_of(other), saved)
        other.train_step(shared_out(other), tiny.REQUEST, tiny.loss)
        again = tiny.weights_of(other)
        off = None if wanted is None else max(float((wanted[key] - again[key]).abs().max()) for key in wanted)
        moved = max(float((again[key] - saved[key]).abs().max()) for key in saved if key.startswith(AHEAD))
        found[name] = {"losses": losses, "taken": taken, "off": off, "moved": moved}
    other.export_hf(root / "mtp-exported")
    dist.barrier()
    found["exported"] = same(stored(root / "mtp-exported"), again)
    return found


def mtp_others(root: Path) -> dict[str, Any]:
    """Critics and fixed models of the family, and a layer of two that is trained."""
    found: dict[str, Any] = {}
    critic = make_backend(root / "mimo", spec={"value_head": True}, training=ADAM, **CP, **ON)
    report = critic.train_step(shared_out(critic), tiny.VALUES, tiny.value_loss)
    found["critic"] = dict(report.metrics), [name for name in tiny.weights_of(critic) if name.startswith(AHEAD)]
    spec = {"copies": ("ref",), "models": (("teacher", root / "mimo_tied"),)}
    backend = make_backend(root / "mimo", spec=spec, training=ADAM, mtp_num_layers=1, **SP, **ON)
    batches = shared_out(backend)
    before = tiny.weights_of(backend)
    first = {name: backend.forward(batches, tiny.REQUEST, weights=name)[0].log_probs for name in ("ref", "teacher")}
    report = [backend.train_step(batches, tiny.REQUEST, tiny.loss) for _ in range(2)][-1]
    again = {name: backend.forward(batches, tiny.REQUEST, weights=name)[0].log_probs for name in ("ref", "teacher")}
    after = tiny.weights_of(backend)
    moved = {name[: len(AHEAD) + 1] for name in before if name.startswith(AHEAD) and not torch.equal(before[name], after[name])}
    found["copies"] = all(torch.equal(first[name], again[name]) for name in first)
    found["one of two"] = moved, sorted(report.metrics)
    backend.offload()
    backend.onload()
    found["back"] = same(tiny.weights_of(backend), after)
    nothing = [mtp_batch(ROWS[:1], mask=0.0), mtp_batch(ROWS[1:2], mask=0.0)]
    report = backend.train_step(nothing, tiny.REQUEST, tiny.loss)
    found["nothing to predict"] = dict(report.metrics), report.skipped
    try:
        make_backend(root / "mimo_lost")
    except UsageError as error:
        found["lost"] = f"{error.code} {error.why}"
    return found


PARTS = (mtp_splits, mtp_states, mtp_others)

"""The processes of ``test_context.py``: ``context_ranks.py FOLDER`` forks four. Rank 0 writes what it found."""

from __future__ import annotations

import dataclasses
import datetime
import multiprocessing
import sys
from pathlib import Path

import helpers
import torch
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from miles_algos.advantages.grpo import Grpo
from miles_algos.losses.gspo_loss import GspoLoss
from miles_core.config import AlgorithmOptions, ClusterOptions, RolloutOptions, TrainingOptions
from miles_core.errors import UsageError
from miles_core.options import Config
from miles_core.protocols import ModelSpec
from miles_core.testing import random_rows
from miles_core.training.batch import MicroBatch, ModelOutputs
from miles_core.training.split import split_rows
from miles_core.training.trainer import Trainer
from miles_fsdp.backend import FsdpBackend
from miles_fsdp.options import FsdpOptions

WORLD = 4
ROWS = [([5, 9], 1, [0.7]), *helpers.samples(6, seed=3), ([7, 3, 2], 1, [-0.4])]
"""Fewer tokens than ranks, odd lengths, and responses that leave ranks without a token to predict."""
ADAM = {"lr": 1e-2, "lr_warmup_iters": 1, "lr_decay_style": "cosine"}
WITH_LOGITS = dataclasses.replace(helpers.REQUEST, logits=True)
CASES = (
    ("qwen3", "thd", 1, 2, {}, -1),
    ("qwen3", "thd", 4, 4, {}, 2),
    ("qwen3", "bshd", 2, 2, {"gradient_checkpointing": True}, -1),
    ("llama", "thd", 2, 4, {"gradient_checkpointing": True}, -1),
    ("llama", "thd", 2, 2, {"cpu_offload": True}, -1),
    ("mistral", "thd", 2, 2, {}, -1),
    ("mistral", "bshd", 4, 4, {}, -1),
    ("moe", "thd", 2, 2, {}, -1),
    ("three", "thd", 2, 2, {"replicate_size": 2}, 2),
    ("three", "thd", 1, 4, {"gradient_checkpointing": True}, -1),
    ("three-windowed", "bshd", 2, 4, {}, -1),
    ("three-windowed", "thd", 4, 4, {}, -1),
    ("six", "thd", 2, 4, {}, -1),
    ("six", "bshd", 1, 4, {"gradient_checkpointing": True}, -1),
)
"""Model, layout, micro-batches of a rank, context ranks, options, chunk size."""


def write_models(root: Path) -> None:
    """Weights of models with sliding windows, and of some whose heads two or four ranks cannot share evenly."""
    torch.manual_seed(1)
    common = {"vocab_size": helpers.VOCABULARY, "num_hidden_layers": 2, "intermediate_size": 48, "initializer_range": 0.2}
    for name, width, heads, key_heads, window in (
        ("mistral", 32, 4, 1, 4),
        ("three-windowed", 24, 3, 1, 3),
    ):
        shape = {"hidden_size": width, "num_attention_heads": heads, "num_key_value_heads": key_heads, "sliding_window": window}
        MistralForCausalLM(MistralConfig(**common, **shape)).save_pretrained(root / name)
    for name, heads, key_heads in (("three", 3, 3), ("six", 6, 3)):
        shape = {"hidden_size": 8 * heads, "num_attention_heads": heads, "num_key_value_heads": key_heads}
        LlamaForCausalLM(LlamaConfig(**common, **shape)).save_pretrained(root / name)


def share(backend: FsdpBackend, layout: str, splits: int) -> list[MicroBatch]:
    """The rows of this data-parallel rank, as micro-batches."""
    place = backend.parallel
    mine = ROWS[place.data_rank :: place.data_size]
    size = len(mine) // splits
    return [helpers.micro_batch(mine[i * size : (i + 1) * size], layout) for i in range(splits)]


def logits_loss(batch: MicroBatch, outputs: ModelOutputs) -> torch.Tensor:
    """A loss of logits alone, which is :func:`helpers.loss` of the log-probs and entropy that they give."""
    every = torch.log_softmax(outputs.logits.float(), -1)
    log_probs = every.gather(1, batch.targets[:, None])[:, 0]
    return helpers.token_loss(log_probs, -(every.exp() * every).sum(-1), batch.data["weight"])


def of_context(size: int, **further: object) -> FsdpOptions:
    """Options of a backend whose gradients can be read off its weights."""
    return FsdpOptions(optimizer="sgd", context_parallel_size=size, **further)


def gradients(root: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The gradients of all rows."""
    found = {}
    for model, layout, splits, size, further, chunk in CASES:
        backend = helpers.make_backend(root / model, options=of_context(size, **further), **helpers.PLAIN_SGD)
        before = helpers.weights_of(backend)
        request = dataclasses.replace(helpers.REQUEST, chunk_size=chunk)
        backend.train_step(share(backend, layout, splits), request, helpers.loss)
        after = backend.export_weights()
        found[f"{model} {layout} {splits} {size}"] = {name: (before[name] - new) / helpers.RATE for name, new in after}
    return found


def trained(root: Path, size: int) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """Metrics and weights of two steps whose loss looks at whole responses, and whose advantages are whitened over all rows."""
    config = Config.of(
        TrainingOptions(use_dynamic_batch_size=True, max_tokens_per_gpu=20, lr=1.0),
        AlgorithmOptions(normalize_advantages=True),
        RolloutOptions(),
        of_context(size),
        ClusterOptions(device="cpu"),
    )
    backend = FsdpBackend(config)
    backend.setup(ModelSpec(checkpoint=root / "three", train_steps=10))
    trainer = Trainer(config, backend, GspoLoss(config), Grpo(config))
    rows = random_rows(16, vocabulary=helpers.VOCABULARY, rollout_log_probs=False)
    place = backend.parallel
    shares = split_rows(rows, data_size=place.data_size, steps=2, balance=True, rollout_id=0)
    report = trainer.train(shares[place.data_rank])
    return report.metrics_per_step, helpers.weights_of(backend)


def refusals(root: Path) -> dict[str, str]:
    """Errors of what cannot be set up."""
    found = {}
    for name, model, size in (("ranks", "qwen3", 3), ("soft-capped", "gemma2", 2), ("own masks", "bloom", 2)):
        try:
            helpers.make_backend(root / model, options=of_context(size), qkv_format="bshd")
        except UsageError as error:
            found[name] = error.line()
    return found


def main(rank: int, root: Path) -> None:
    torch.set_num_threads(1)
    minute = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{root}/init", rank=rank, world_size=WORLD, timeout=minute)
    results: dict[str, object] = {"refusals": refusals(root), "gradients": gradients(root)}

    results["trained"] = {size: trained(root, size) for size in (1, 2, 4)}

    logits = helpers.make_backend(root / "llama", options=of_context(2), **helpers.PLAIN_SGD)
    before = helpers.weights_of(logits)
    logits.train_step(share(logits, "thd", 2), WITH_LOGITS, logits_loss)
    results["logits"] = {name: (before[name] - new) / helpers.RATE for name, new in logits.export_weights()}

    critic = helpers.make_backend(root / "qwen3", options=of_context(4), spec={"value_head": True}, **helpers.PLAIN_SGD)
    results["values"] = critic.forward(share(critic, "thd", 1), helpers.VALUES)[0].values
    results["critic gradients"] = helpers.gradients(critic, share(critic, "thd", 2), critic=True)

    copies = {"copies": ("ref",), "models": (("teacher", root / "llama"),)}
    backend = helpers.make_backend(root / "qwen3", options=FsdpOptions(context_parallel_size=2), spec=copies, **ADAM)
    place = backend.parallel
    places: list[object] = [None] * WORLD
    told = place.rank, place.data_rank, place.data_size, place.context_size, place.reports, place.computes_loss, place.exports
    dist.all_gather_object(places, (told, dist.get_process_group_ranks(place.data_group)))
    results["places"] = places
    for weights, layout in (("actor", "thd"), ("ref", "bshd"), ("teacher", "thd")):
        outputs = backend.forward(share(backend, layout, 2), helpers.REQUEST, weights=weights)
        mine = torch.cat([each.log_probs for each in outputs]), torch.cat([each.entropy for each in outputs])
        every: list[object] = [None] * WORLD
        dist.all_gather_object(every, mine)
        results[weights] = every
    results["report"] = backend.train_step(share(backend, "thd", 2), helpers.REQUEST, helpers.loss)
    saved = root / "saved-context"
    if rank == 0:
        saved.mkdir()
    dist.barrier()
    backend.save(saved)
    results["saved"] = helpers.weights_of(backend)
    results["next"] = []
    for size in (2, 4, 1):
        resumed = helpers.make_backend(root / "qwen3", options=FsdpOptions(context_parallel_size=size), **ADAM)
        resumed.load(saved)
        report = resumed.train_step(share(resumed, "thd", 2), helpers.REQUEST, helpers.loss)
        results["next"].append((report, helpers.weights_of(resumed)))
    results["stepped"] = backend.train_step(share(backend, "thd", 2), helpers.REQUEST, helpers.loss), helpers.weights_of(backend)
    if rank == 0:
        torch.save(results, root / "context.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    # Forked, the processes share what was imported, which takes longer than all they do.
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=main, args=(rank, folder)) for rank in range(WORLD)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    sys.exit(max(abs(process.exitcode or 0) for process in ranks))

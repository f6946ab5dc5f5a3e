"""Tiny checkpoints, samples and micro-batches; for the tests of this folder and for the processes that they start."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from miles_core.config import ClusterOptions, TrainingOptions
from miles_core.options import Config
from miles_core.protocols.backend import ModelSpec, OutputRequest
from miles_core.training.batch import MicroBatch
from miles_fsdp.backend import FsdpBackend
from miles_fsdp.options import FsdpOptions

VOCABULARY = 131  # prime, so that no number of ranks divides it
REQUEST = OutputRequest(entropy=True, temperature=0.7)
VALUES = OutputRequest(log_probs=False, values=True, temperature=0.7, chunk_size=3)


def write_checkpoints(root: Path) -> None:
    """Random fp32 weights: ``qwen3`` (tied), ``llama`` (untied, in several files), ``half`` (bf16), ``moe``, and the odd ones.

    ``gemma2`` soft-caps its logits and has sliding windows; ``bloom`` has positions and masks of its own.
    """
    torch.manual_seed(0)
    common = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 128}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48, "initializer_range": 0.2}
    qwen3 = Qwen3ForCausalLM(Qwen3Config(**common, **heads, head_dim=8, tie_word_embeddings=True))
    qwen3.save_pretrained(root / "qwen3")
    tokenizer().save_pretrained(root / "qwen3")
    LlamaForCausalLM(LlamaConfig(**common, **heads, tie_word_embeddings=False)).save_pretrained(
        root / "llama", max_shard_size="20KB"
    )
    qwen3.to(torch.bfloat16).save_pretrained(root / "half")
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 1, "head_dim": 8}
    gemma2 = Gemma2Config(**common, **heads, head_dim=8, sliding_window=4, final_logit_softcapping=2.0)
    Gemma2ForCausalLM(gemma2).save_pretrained(root / "gemma2")
    bloom = BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2)
    BloomForCausalLM(bloom).save_pretrained(root / "bloom")
    Qwen3MoeForCausalLM(Qwen3MoeConfig(**common, **heads, **experts)).save_pretrained(root / "moe")


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a character."""
    vocabulary = {chr(c): i for i, c in enumerate(range(32, 127))} | {"<unk>": 95, "<eos>": 96}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", pad_token="<eos>")


def make_backend(
    checkpoint: Path, *, options: FsdpOptions | None = None, spec: dict | None = None, device: str = "cpu", **training
) -> FsdpBackend:
    """A backend that is set up."""
    config = Config.of(TrainingOptions(**training), options or FsdpOptions(), ClusterOptions(device=device))
    backend = FsdpBackend(config)
    backend.setup(ModelSpec(checkpoint=checkpoint, **{"train_steps": 10, **(spec or {})}))
    return backend


Sample = tuple[list[int], int, list[float]]


def samples(count: int, seed: int = 1) -> list[Sample]:
    """Tokens, response length, and a weight for each response token."""
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        response = rng.randint(1, 7)
        tokens = [rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 12) + response)]
        found.append((tokens, response, [rng.uniform(-1, 1) for _ in range(response)]))
    return found


def micro_batch(chosen: list[Sample], layout: str = "thd", padding: int = 0) -> MicroBatch:
    """The samples as one micro-batch; ``padding`` tokens make a last segment of a packed one."""
    sizes = [len(tokens) for tokens, _, _ in chosen]
    longest = max([*sizes, padding])
    bounds, mask = None, None
    if layout == "thd":
        rows = [*(tokens for tokens, _, _ in chosen), *([[0] * padding] if padding else [])]
        tokens = torch.tensor([token for row in rows for token in row])[None]
        positions = torch.cat([torch.arange(len(row)) for row in rows])[None]
        bounds = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0).to(torch.int32)
        starts = bounds.tolist()
    else:
        tokens = torch.tensor([row + [0] * (longest - len(row)) for row, _, _ in chosen])
        mask = torch.tensor([[True] * size + [False] * (longest - size) for size in sizes])
        positions = torch.arange(longest).expand(len(chosen), -1).contiguous()
        starts = [i * longest for i in range(len(chosen))]
    index = [
        torch.arange(start + size - response - 1, start + size - 1)
        for start, size, (_, response, _) in zip(starts, sizes, chosen, strict=False)
    ]
    return MicroBatch(
        tokens=tokens,
        position_ids=positions,
        rows=tuple(range(len(chosen))),
        lengths=tuple(response for _, response, _ in chosen),
        logit_index=torch.cat(index),
        targets=torch.cat([torch.tensor(row[-response:]) for row, response, _ in chosen]),
        max_seqlen=longest,
        cu_seqlens=bounds,
        attention_mask=mask,
        data={"weight": torch.cat([torch.tensor(weight) for _, _, weight in chosen])},
    )


def routed(batch: MicroBatch) -> MicroBatch:
    """The micro-batch with routes for ``moe`` that depend on each token's id alone: two neighbours of its four experts."""
    first = batch.tokens.reshape(-1, 1, 1) + torch.arange(2)[:, None]
    return dataclasses.replace(batch, routes=((first + torch.arange(2)) % 4).to(torch.int16))


def token_loss(log_probs: torch.Tensor, entropy: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A loss that is not linear in the outputs, summed."""
    return (weight * log_probs.exp() - 0.3 * weight * log_probs + 0.1 * weight * entropy).sum()


def loss(batch: MicroBatch, outputs) -> torch.Tensor:
    """:func:`token_loss` of a micro-batch."""
    return token_loss(outputs.log_probs, outputs.entropy, batch.data["weight"])


def value_loss(batch: MicroBatch, outputs) -> torch.Tensor:
    """A loss of a critic, summed."""
    return (batch.data["weight"] * (outputs.values - 1.0).square()).sum()


def reference(checkpoint: Path, chosen: list[Sample]) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    """The plain HF model run on one sample at a time, with the gradients of the loss: model, log-probs, entropy."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager").eval()
    picked, entropies = [], []
    for tokens, response, weight in chosen:
        logits = model(torch.tensor([tokens]), use_cache=False).logits[0, -response - 1 : -1].float() / REQUEST.temperature
        every = torch.log_softmax(logits, -1)
        log_probs = every.gather(1, torch.tensor(tokens[-response:])[:, None])[:, 0]
        entropy = -(every.exp() * every).sum(-1)
        token_loss(log_probs, entropy, torch.tensor(weight)).backward()
        picked.append(log_probs.detach())
        entropies.append(entropy.detach())
    return model, torch.cat(picked), torch.cat(entropies)


def weights_of(backend: FsdpBackend) -> dict[str, torch.Tensor]:
    """A copy of the exported weights."""
    return {name: tensor.clone() for name, tensor in backend.export_weights()}


RATE = 1000.0


def gradients(backend: FsdpBackend, batches: list[MicroBatch], *, critic: bool = False) -> dict[str, torch.Tensor]:
    """The gradient of one step, read off the weights that SGD without clipping moves: set up with :data:`PLAIN_SGD`."""
    before = weights_of(backend)
    backend.train_step(batches, VALUES if critic else REQUEST, value_loss if critic else loss)
    return {name: (before[name] - after) / RATE for name, after in backend.export_weights()}


PLAIN_SGD = {"lr": RATE, "clip_grad": 0.0}


def furthest(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """The largest error of any tensor, relative to the largest entry of that tensor."""
    assert found.keys() == wanted.keys()
    return max(((found[name] - wanted[name]).abs().max() / wanted[name].abs().max()).item() for name in wanted)

"""A small causal transformer in plain PyTorch that takes both layouts of a micro-batch."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from miles_core.training.batch import MicroBatch

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class ToyConfig:
    """Sizes of a :class:`ToyModel`."""

    vocab_size: int = 32
    hidden_size: int = 16
    layers: int = 2
    heads: int = 2
    value_head: bool = False


class ToyModel(nn.Module):
    """Sinusoidal positions, pre-norm blocks of attention and a two-layer perceptron, an untied head; one output for a critic."""

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.hidden_size)
        self.head = nn.Linear(config.hidden_size, 1 if config.value_head else config.vocab_size, bias=config.value_head)

    def critic(self) -> ToyModel:
        """A copy with a value head, which starts at 0 where this model has none."""
        model = ToyModel(replace(self.config, value_head=True))
        kept = {n: t for n, t in self.state_dict().items() if self.config.value_head or not n.startswith("head.")}
        model.load_state_dict({n: torch.zeros_like(t) for n, t in model.state_dict().items()} | kept)
        return model

    @classmethod
    def random(cls, config: ToyConfig, seed: int) -> ToyModel:
        """A model whose logits spread enough for probabilities to differ by orders of magnitude."""
        generator = torch.Generator().manual_seed(seed)
        model = cls(config)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.4, generator=generator)
        return model

    def hidden(self, tokens: torch.Tensor, position_ids: torch.Tensor, cu_seqlens: torch.Tensor | None) -> torch.Tensor:
        """Hidden states before the head, ``[B, L, H]``; ``tokens`` and ``position_ids`` are ``[B, L]``."""
        length = tokens.shape[1]
        visible = torch.ones(length, length, dtype=torch.bool).tril()
        if cu_seqlens is not None:
            segment = torch.bucketize(torch.arange(length), cu_seqlens[1:], right=True)
            visible &= segment[:, None] == segment[None, :]
        x = self.embedding(tokens)
        x = x + _positions(position_ids, x.shape[-1]).to(x.dtype)
        for block in self.blocks:
            x = block(x, visible)
        normed: torch.Tensor = self.norm(x)
        return normed

    def response_hidden(self, batch: MicroBatch) -> torch.Tensor:
        """Hidden states that predict the response tokens of a micro-batch, ``[N, H]``."""
        states = self.hidden(batch.tokens, batch.position_ids, batch.cu_seqlens)
        return states.flatten(0, 1).index_select(0, batch.logit_index)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits of one sequence, ``[T]`` to ``[T, V]``."""
        logits: torch.Tensor = self.head(self.hidden(tokens[None], torch.arange(len(tokens))[None], None)[0])
        return logits


class _Block(nn.Module):
    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.heads = config.heads
        self.first_norm, self.second_norm = nn.LayerNorm(size), nn.LayerNorm(size)
        self.qkv, self.out = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.up, self.down = nn.Linear(size, 2 * size), nn.Linear(2 * size, size)

    def forward(self, x: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.first_norm(x)).chunk(3, dim=-1)
        )
        scores = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).masked_fill(~visible, float("-inf"))
        x = x + self.out((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))
        updated: torch.Tensor = x + self.down(F.gelu(self.up(self.second_norm(x))))
        return updated


def _positions(position_ids: torch.Tensor, size: int) -> torch.Tensor:
    rates = torch.exp(torch.arange(0, size, 2) * (-math.log(100.0) / size))
    angles = position_ids[..., None] * rates
    return torch.cat([angles.sin(), angles.cos()], -1)


def write_toy_checkpoint(directory: Path, config: ToyConfig | None = None, *, seed: int = 0) -> Path:
    """A directory that :class:`miles_core.testing.ToyBackend` sets up from; returns it."""
    return save_toy(directory, ToyModel.random(config or ToyConfig(), seed))


def save_toy(directory: Path, model: ToyModel) -> Path:
    """Write config and weights, in float32."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"model_type": "miles_toy", **asdict(model.config)}))
    save_file({name: tensor.detach().float().contiguous() for name, tensor in model.state_dict().items()}, directory / WEIGHTS)
    return directory


def toy_reference(directory: Path) -> ToyModel:
    """The model of a toy checkpoint, to run on one sequence at a time."""
    fields = json.loads((directory / "config.json").read_text())
    fields.pop("model_type")
    model = ToyModel(ToyConfig(**fields))
    model.load_state_dict(load_file(directory / WEIGHTS))
    return model

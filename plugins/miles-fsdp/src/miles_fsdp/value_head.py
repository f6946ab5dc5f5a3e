"""The value head of a critic: one output in the place of the vocabulary head, under the name that HF classifiers give theirs."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from miles_core.hf import HfWeights

    Read = Callable[[str, tuple[int, int]], torch.Tensor]

HEAD = "score"
NAMES = (f"{HEAD}.weight", f"{HEAD}.bias")
INIT_STD = 0.02


def install(model: Any) -> None:
    """Replace the vocabulary head by ``Linear(hidden, 1)`` with a bias, on the meta device.

    A head that is tied to the input embedding only lets go of it. What a checkpoint holds for the old head is ignored.
    """
    old = model.get_output_embeddings()
    name = next(name for name, module in model.named_modules() if module is old)
    parent, _, attribute = name.rpartition(".")
    delattr(model.get_submodule(parent), attribute)
    ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    model._keys_to_ignore_on_load_unexpected = [*ignored, rf"^{re.escape(name)}\."]
    setattr(model, HEAD, nn.Linear(old.in_features, 1, device="meta", dtype=torch.float32))


def of(model: nn.Module) -> nn.Linear | None:
    """The value head of a model that has one."""
    head = getattr(model, HEAD, None)
    return head if isinstance(head, nn.Linear) and head.out_features == 1 else None


def reader(model: nn.Module, weights: HfWeights, seed: int, read: Read) -> Read:
    """``read``, except that the head comes from the checkpoint if that has one, else from ``seed``, alike on every rank.

    Its weights are then normal with standard deviation 0.02, and its bias is 0.
    """
    head = of(model)
    if head is None:
        return read
    generator = torch.Generator().manual_seed(seed)
    fresh = {NAMES[0]: INIT_STD * torch.randn((1, head.in_features), generator=generator), NAMES[1]: torch.zeros(1)}

    def rows_of(name: str, rows: tuple[int, int]) -> torch.Tensor:
        if name not in fresh:
            return read(name, rows)
        return weights.read(name, rows) if name in weights.tensors else fresh[name][rows[0] : rows[1]]

    return rows_of


def describe(directory: Path) -> None:
    """Have an exported config say that it is of a token classifier with one label, which ``transformers`` then loads."""
    file = directory / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["architectures"] = [name.replace("ForCausalLM", "ForTokenClassification") for name in config.get("architectures") or ()]
    config |= {"id2label": {"0": "value"}, "label2id": {"value": 0}}
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

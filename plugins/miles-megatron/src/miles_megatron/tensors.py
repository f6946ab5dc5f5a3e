"""The tensors of a model's checkpoints, from its constants, against those that an HF directory holds. Light: no torch here."""

from __future__ import annotations

import json
import struct
from functools import lru_cache
from typing import TYPE_CHECKING

from miles_core.errors import UsageError
from miles_megatron.architecture import OWNER

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from miles_megatron.architecture import Architecture

Shape = tuple[int, ...]
HEAD = "lm_head.weight"
MTP = "model.mtp_layers."
SHOWN = 3


@lru_cache(maxsize=8)
def shapes_of(architecture: Architecture) -> Mapping[str, Shape]:
    """Shapes of all tensors that a checkpoint of the architecture may have, by their names; a tied head may be stored."""
    hidden, table = architecture.hidden, (architecture.vocab_size, architecture.hidden)
    found: dict[str, Shape] = {"model.embed_tokens.weight": table, "model.norm.weight": (hidden,), HEAD: table}
    for number, sparse in enumerate(architecture.sparse):
        found |= {f"model.layers.{number}.{name}": shape for name, shape in _layer(architecture, sparse).items()}
    return {**found, **mtp_shapes(architecture)}


def mtp_shapes(architecture: Architecture) -> Mapping[str, Shape]:
    """The same of those of its layers of multi-token prediction."""
    hidden = architecture.hidden
    layer: dict[str, Shape] = {f"{name}_layernorm.weight": (hidden,) for name in ("token", "hidden", "final")}
    layer |= {"input_proj.weight": (hidden, 2 * hidden), **_layer(architecture, sparse=False)}
    return {f"{MTP}{number}.{name}": shape for number in range(architecture.mtp_layers) for name, shape in layer.items()}


def value_shapes(architecture: Architecture) -> Mapping[str, Shape]:
    """The same of those that only a critic's checkpoint has."""
    return {"score.weight": (1, architecture.hidden), "score.bias": (1,)}


def _layer(architecture: Architecture, sparse: bool) -> dict[str, Shape]:
    hidden, size = architecture.hidden, architecture.head_dim
    rows = {"q": architecture.heads * size, "k": architecture.key_heads * size, "v": architecture.key_heads * size}
    found: dict[str, Shape] = dict.fromkeys(("input_layernorm.weight", "post_attention_layernorm.weight"), (hidden,))
    found["self_attn.o_proj.weight"] = (hidden, rows["q"])
    for each, count in rows.items():
        found[f"self_attn.{each}_proj.weight"] = (count, hidden)
        if architecture.qkv_bias:
            found[f"self_attn.{each}_proj.bias"] = (count,)
    if architecture.qk_norm:
        found |= {f"self_attn.{each}_norm.weight": (size,) for each in "qk"}
    if sparse:
        found["mlp.gate.weight"] = (architecture.experts, hidden)
    owners = [f"mlp.experts.{i}." for i in range(architecture.experts)] if sparse else ["mlp."]
    inner = architecture.expert_ffn if sparse else architecture.ffn
    for owner in owners:
        found |= {f"{owner}{each}_proj.weight": (inner, hidden) for each in ("gate", "up")}
        found[f"{owner}down_proj.weight"] = (hidden, inner)
    return found


def stored_shapes(folder: Path) -> dict[str, Shape] | None:
    """Of all tensors of an HF directory, from the headers of its files; None when they cannot be read, which others report."""
    try:
        index = folder / "model.safetensors.index.json"
        names = ["model.safetensors"]
        if index.is_file():
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        found: dict[str, Shape] = {}
        for name in names:
            with (folder / name).open("rb") as opened:
                (length,) = struct.unpack("<Q", opened.read(8))
                header = json.loads(opened.read(min(length, (folder / name).stat().st_size)))
            found |= {key: tuple(entry["shape"]) for key, entry in header.items() if key != "__metadata__"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return None
    return found


def problems(architecture: Architecture, stored: Mapping[str, Shape], folder: Path, *, headless: bool) -> Iterator[UsageError]:
    """What is wrong with the tensors of a directory: their names (M342), and the shapes of the right ones (M343).

    Args:
        architecture: of the model.
        stored: shapes of the directory's tensors.
        folder: the directory.
        headless: whether what critics have no use for may be missing: vocabulary head and multi-token prediction.
    """
    needed = shapes_of(architecture)
    known = {**needed, **value_shapes(architecture)}
    optional = {HEAD} if headless or architecture.tied else set()
    if headless:
        optional |= mtp_shapes(architecture).keys()
    if missing := sorted(needed.keys() - stored.keys() - optional):
        yield names_error(folder, f"{len(missing)} are missing ({_some(missing)})")
    if odd := sorted(name for name in stored.keys() - known.keys() if not name.endswith("rotary_emb.inv_freq")):
        yield names_error(folder, f"{len(odd)} are of no parameter ({_some(odd)})")
    if wrong := sorted(name for name in stored.keys() & known.keys() if stored[name] != known[name]):
        first = wrong[0]
        more = f", and {len(wrong) - 1} more differ" if wrong[1:] else ""
        yield UsageError(
            "M343",
            f"{first} of {folder} has shape {list(stored[first])}, the model needs {list(known[first])}{more}",
            owner=OWNER,
            why="config and weights are of different models",
            fix="give a checkpoint whose config.json belongs to its weights",
        )


def names_error(folder: Path, why: str) -> UsageError:
    """A directory has not the tensors of the model (M342)."""
    fix = "give a whole checkpoint of the architecture that its config.json says"
    return UsageError("M342", f"the tensors of {folder} are not the model's", owner=OWNER, why=why, fix=fix)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")

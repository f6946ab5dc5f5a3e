"""The constants of a model, from its HF config alone. Light: nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from miles_core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

OWNER = "miles-megatron"
MTP_LAYERS = "num_nextn_predict_layers"
"""Entry of a config: layers of multi-token prediction."""


@dataclass(frozen=True)
class Family:
    """What models of one ``model_type`` have in common.

    Attributes:
        qkv_bias: whether query, key and value have biases.
        qk_norm: whether queries and keys are normalised per head.
        experts: whether layers may be mixtures of experts.
        mtp: whether there may be layers of multi-token prediction.
    """

    qkv_bias: bool = False
    qk_norm: bool = False
    experts: bool = False
    mtp: bool = False


FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mimo": Family(qkv_bias=True, mtp=True),
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(qk_norm=True),
    "qwen3_moe": Family(qk_norm=True, experts=True),
}
"""Models that this package builds, by the ``model_type`` of their config."""


@dataclass(frozen=True)
class Architecture:
    """The constants of a model.

    Attributes:
        name: of the family, in :data:`FAMILIES`.
        layers, hidden, ffn, heads, key_heads, head_dim, vocab_size, max_positions: sizes.
        norm_eps: of every RMSNorm.
        rope_theta: base of the rotary frequencies.
        rope_factor: Llama 3's scaling of them, None for none.
        rope_interpolation: what positions are divided by, None for nothing.
        tied: the vocabulary head is the embedding.
        qkv_bias, qk_norm: see :class:`Family`.
        experts: of a mixture of experts, 0 for none.
        experts_per_token: that each token goes to.
        expert_ffn: hidden units of an expert.
        renormalises: whether the weights of a token's experts add up to 1.
        sparse: for each layer, whether it is a mixture of experts.
        mtp_layers: of multi-token prediction, behind the others.
        vocab_multiple: the vocabulary is padded to a multiple of this times the tensor-parallel size.
    """

    name: str
    layers: int
    hidden: int
    ffn: int
    heads: int
    key_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    norm_eps: float
    rope_theta: float
    rope_factor: float | None
    rope_interpolation: float | None
    tied: bool
    qkv_bias: bool
    qk_norm: bool
    experts: int = 0
    experts_per_token: int = 0
    expert_ffn: int = 0
    renormalises: bool = True
    sparse: tuple[bool, ...] = ()
    mtp_layers: int = 0
    vocab_multiple: int = 128

    def padded_vocab(self, ranks: int) -> int:
        """Rows of the embedding, padding included, on all of so many tensor-parallel ranks."""
        multiple = self.vocab_multiple * ranks
        return -(-self.vocab_size // multiple) * multiple


def architecture(config: Mapping[str, Any], name: str | None = None, vocab_multiple: int = 128) -> Architecture:
    """The constants that a ``config.json`` says.

    Args:
        config: its content.
        name: of the family, when it is not the config's own ``model_type``.
        vocab_multiple: see :class:`Architecture`.

    Raises:
        UsageError: the model is not of a family here, or has a part that is not built (M345).
    """
    kind = name or str(config.get("model_type"))
    family = FAMILIES.get(kind)
    if family is None:
        known = ", ".join(sorted(FAMILIES))
        fix = "take one of these, or --backend fsdp, or give --custom-model-provider-path"
        raise _unsupported(kind, f"supported are {known}", fix)
    _check_parts(kind, config)
    heads, layers = _size(kind, config, "num_attention_heads"), _size(kind, config, "num_hidden_layers")
    theta, factor, interpolation = _rope(kind, config)
    # Newer releases of transformers write the second name.
    field = "num_local_experts" if config.get("num_local_experts") else "num_experts"
    experts = _size(kind, config, field) if family.experts else 0
    hidden, key_heads = _size(kind, config, "hidden_size"), _size(kind, config, "num_key_value_heads", heads)
    if heads % key_heads:
        raise _garbled(kind, "num_key_value_heads", f"is {key_heads}, and does not divide {heads} attention heads")
    return Architecture(
        name=kind,
        layers=layers,
        hidden=hidden,
        ffn=_size(kind, config, "intermediate_size"),
        heads=heads,
        key_heads=key_heads,
        head_dim=_size(kind, config, "head_dim", hidden // heads),
        vocab_size=_size(kind, config, "vocab_size"),
        max_positions=_size(kind, config, "max_position_embeddings", 2048),
        norm_eps=_real(kind, config, "rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_factor=factor,
        rope_interpolation=interpolation,
        tied=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
        experts=experts,
        experts_per_token=_size(kind, config, "num_experts_per_tok") if experts else 0,
        expert_ffn=_size(kind, config, "moe_intermediate_size") if experts else 0,
        renormalises=bool(config.get("norm_topk_prob", False)),
        sparse=tuple(_is_sparse(config, layer) for layer in range(layers)) if experts else (False,) * layers,
        mtp_layers=_size(kind, config, MTP_LAYERS) if config.get(MTP_LAYERS) else 0,
        vocab_multiple=vocab_multiple,
    )


def _check_parts(kind: str, config: Mapping[str, Any]) -> None:
    fix = "take --backend fsdp"
    if config.get("hidden_act", "silu") != "silu":
        raise _unsupported(kind, f"its activation is {config['hidden_act']}, and silu is built", fix)
    if config.get("use_sliding_window") and config.get("sliding_window"):
        raise _unsupported(kind, "it has sliding windows, and full attention is built", fix)
    if config.get("mlp_bias"):
        raise _unsupported(kind, "its MLPs have biases, which are not built", fix)
    if config.get("attention_bias") and not FAMILIES[kind].qkv_bias:
        raise _unsupported(kind, "its attention's output has a bias, which is not built", fix)
    if (config.get(MTP_LAYERS) and not FAMILIES[kind].mtp) or config.get("mtp_num_layers"):
        raise _unsupported(kind, "it has multi-token-prediction layers, which are not built", fix)


def _rope(kind: str, config: Mapping[str, Any]) -> tuple[float, float | None, float | None]:
    """Base, Llama 3's factor and interpolation of the rotary angles, from either way to write them."""
    parts = [config.get(name) or {} for name in ("rope_scaling", "rope_parameters")]
    if not all(isinstance(part, dict) for part in parts):
        raise _garbled(kind, "rope_scaling", "is no object")
    found = {**parts[0], **parts[1]}
    theta = _real(kind, found if found.get("rope_theta") else config, "rope_theta", 10_000.0)
    form = found.get("rope_type", found.get("type", "default"))
    if form == "default":
        return theta, None, None
    if form == "linear":
        return theta, None, _real(kind, found, "factor")
    # megatron-core has these three numbers of Llama 3.1 built in.
    fixed = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    if form == "llama3" and all(found.get(name, value) == value for name, value in fixed.items()):
        return theta, _real(kind, found, "factor"), None
    raise _unsupported(kind, f"its rotary angles are scaled by {form}, which is not built", "take --backend fsdp")


def _is_sparse(config: Mapping[str, Any], layer: int) -> bool:
    """As transformers decides it."""
    every = int(config.get("decoder_sparse_step") or 1)
    return layer not in (config.get("mlp_only_layers") or ()) and (layer + 1) % every == 0


def _size(kind: str, config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """A whole number above 0 of a config."""
    value = default if config.get(name) is None else config[name]
    if not isinstance(value, int) or value < 1:
        raise _garbled(kind, name, "is missing" if value is None else f"is {value!r}, and no whole number above 0")
    return value


def _real(kind: str, config: Mapping[str, Any], name: str, default: float | None = None) -> float:
    """A number above 0 of a config."""
    value = default if config.get(name) is None else config[name]
    if not isinstance(value, (int, float)) or not value > 0:
        raise _garbled(kind, name, "is missing" if value is None else f"is {value!r}, and no number above 0")
    return float(value)


def _garbled(kind: str, name: str, why: str) -> UsageError:
    return _unsupported(kind, f"{name} of its config.json {why}", "give the config.json that belongs to the weights")


def _unsupported(kind: str, why: str, fix: str) -> UsageError:
    return UsageError("M345", f"the megatron backend does not build {kind} models like this one", owner=OWNER, why=why, fix=fix)

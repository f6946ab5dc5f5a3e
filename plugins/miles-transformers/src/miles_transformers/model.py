"""The model, as the decoder needs it: loaded, probed, and with the masks that its attention takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from miles_core.accelerator.device import accelerator, accelerator_of
from miles_core.errors import RunError, UsageError
from miles_core.hf import register_families
from miles_core.numerics.model import check_place, make_invariant
from miles_transformers.attention import install
from miles_transformers.slots import LayerShape, SlotCache

OWNER = "miles-transformers"
HOST_CACHE_BYTES = 1 << 30
"""Most memory of the KV cache on a CPU, unless asked for otherwise."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class LoadedModel:
    """A causal LM with what decoding must know about it.

    Attributes:
        module: the transformers model, in eval mode.
        layers: keys and values per token, per layer.
        windows: attention kinds of the layers; a number is a sliding window in tokens, None is full attention.
        context: most tokens of prompt and response together.
        eos_ids: tokens that end a response.
        eager: whether masks are added to scores, rather than given as booleans.
    """

    path: Path
    module: Any
    tokenizer: Any
    device: torch.device
    dtype: torch.dtype
    layers: tuple[LayerShape, ...]
    windows: dict[str, int | None]
    vocab: int
    context: int
    eos_ids: tuple[int, ...]
    eager: bool

    def forward(self, ids: Tensor, positions: Tensor, mask: Tensor, columns: Tensor, cache: SlotCache) -> Tensor:
        """Logits of the last column, ``[B, V]``.

        Args:
            ids, positions: ``[B, T]``.
            mask: who may attend to whom without windows, bool ``[B, 1, T, L]``.
            columns: distance from each query to each key in tokens, int64 ``[B, 1, T, L]``; used for windows only.
        """
        output = self.module(
            input_ids=ids,
            position_ids=positions,
            attention_mask=self.masks(mask, columns),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]  # type: ignore[no-any-return]

    def masks(self, mask: Tensor, distance: Tensor) -> Tensor | dict[str, Tensor]:
        """The masks that the model takes, from those of :meth:`forward`."""
        masks = {kind: self._mask(mask, distance, window) for kind, window in self.windows.items()}
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _mask(self, mask: Tensor, distance: Tensor, window: int | None) -> Tensor:
        if window is not None:
            mask = mask & (distance < window)
        if not self.eager:
            return mask
        return torch.zeros(mask.shape, dtype=self.dtype, device=mask.device).masked_fill_(~mask, torch.finfo(self.dtype).min)

    def decode(self, ids: Sequence[Sequence[int]], skip_special_tokens: bool) -> list[str]:
        """Texts of token ids."""
        fast = getattr(self.tokenizer, "backend_tokenizer", None)
        if fast is not None and not getattr(self.tokenizer, "clean_up_tokenization_spaces", False):
            return list(fast.decode_batch([list(i) for i in ids], skip_special_tokens=skip_special_tokens))
        return [self.tokenizer.decode(list(i), skip_special_tokens=skip_special_tokens) for i in ids]


def device_of(setting: str, devices: tuple[int, ...]) -> torch.device:
    """The torch device for ``--device`` and the physical accelerator ids of the launch.

    Raises:
        UsageError: ``M451``, more than one device, or none where one is asked for.
    """
    if setting == "cpu" or (setting == "auto" and (not devices or accelerator().type == "cpu")):
        return torch.device("cpu")
    if len(devices) > 1:
        fix = "set --rollout-num-gpus-per-engine 1"
        raise UsageError("M451", f"one transformers engine was given the GPUs {list(devices)}", owner=OWNER, fix=fix)
    if accelerator().type == "cpu":
        raise UsageError("M451", "--device is cuda and PyTorch sees no GPU", owner=OWNER, fix="set --device cpu")
    return accelerator().device(accelerator().local_index(devices[0] if devices else 0))


def load_model(path: Path, device: torch.device, dtype: str, attention: str, *, invariant: bool = False) -> LoadedModel:
    """Load config, weights and tokenizer from an HF directory.

    Args:
        invariant: compute every token alike in every batch, see :mod:`miles_core.numerics`; ``attention`` is sdpa then.

    Raises:
        UsageError: ``M278`` or ``M279``, the device or the model cannot be invariant.
        UsageError: ``M452``, the directory is no checkpoint, or its architecture keeps a cache that has no slots.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    def refuse(what: str, why: str, fix: str) -> UsageError:
        return UsageError("M452", what, owner=OWNER, why=why, fix=fix, path=str(path))

    if not (path / "config.json").is_file():
        raise refuse(f"{path} is no HF checkpoint", "config.json is missing", "give the directory that save_pretrained wrote")
    register_families()
    try:
        config = AutoConfig.from_pretrained(path)
        text = config.get_text_config()
        eager = attention == "eager" or getattr(text, "attn_logit_softcapping", None) is not None
        chosen = DTYPES.get(dtype) or (torch.bfloat16 if device.type == "cuda" else torch.float32)
        module, report = AutoModelForCausalLM.from_pretrained(
            path, config=config, dtype=chosen, attn_implementation="eager" if eager else "sdpa", output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise refuse(f"cannot load {path}", f"{type(error).__name__}: {error}", "check config, weights and tokenizer") from error
    # transformers itself only warns, and fills what is missing with random numbers.
    lacking = [f"missing {name}" for name in sorted(report["missing_keys"])]
    lacking += [f"misshapen {entry[0] if isinstance(entry, tuple) else entry}" for entry in sorted(report["mismatched_keys"])]
    if lacking:
        raise refuse(f"cannot load {path}", f"the weights do not fit the config: {', '.join(lacking[:3])}", "check the checkpoint")
    module.eval().requires_grad_(False)
    module.to(device)
    if invariant:
        check_place(device.type, OWNER)
        make_invariant(module)
    if not eager:
        install(module, invariant=invariant)
    return LoadedModel(
        path=path,
        module=module,
        tokenizer=tokenizer,
        device=device,
        dtype=chosen,
        layers=_layers(module, device, refuse),
        windows=_windows(text, refuse),
        vocab=module.get_input_embeddings().weight.shape[0],
        context=int(getattr(text, "max_position_embeddings", None) or 1 << 20),
        eos_ids=_eos_ids(module, tokenizer),
        eager=eager,
    )


def _layers(module: Any, device: torch.device, refuse: Any) -> tuple[LayerShape, ...]:
    """What a token keeps in the cache, found by passing one through the model."""
    from transformers import DynamicCache

    cache = DynamicCache()
    with torch.inference_mode():
        module(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=device), past_key_values=cache, use_cache=True)
    shapes = []
    for layer in cache.layers:
        keys, values = layer.keys, layer.values
        if keys is None or keys.dim() != 4 or keys.shape[2] != 1:
            raise refuse(
                f"{type(module).__name__} cannot decode in slots", "a layer keeps no keys per token", "take another engine"
            )
        shapes.append(LayerShape(keys.shape[1], keys.shape[3], values.shape[3]))
    if not shapes:
        raise refuse(
            f"{type(module).__name__} cannot decode in slots", "it does not use transformers' cache", "take another engine"
        )
    return tuple(shapes)


def _windows(config: Any, refuse: Any) -> dict[str, int | None]:
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return {"full_attention": window if getattr(config, "use_sliding_window", True) else None}
    known = {"full_attention": None, "sliding_attention": window}
    unknown = sorted(set(kinds) - set(known))
    if unknown:
        raise refuse(
            f"{config.model_type} cannot decode in slots", f"it has layers of kind {', '.join(unknown)}", "take another engine"
        )
    if "sliding_attention" not in kinds:
        return {"full_attention": None}
    # Models with windows look masks up by kind, so both kinds are given even where one of them has no layer.
    return known


def _eos_ids(module: Any, tokenizer: Any) -> tuple[int, ...]:
    found: list[int] = []
    for holder in (module.generation_config, module.config.get_text_config()):
        ids = getattr(holder, "eos_token_id", None)
        found.extend([ids] if isinstance(ids, int) else ids or [])
    if not found and tokenizer.eos_token_id is not None:
        found.append(tokenizer.eos_token_id)
    return tuple(dict.fromkeys(found))


def cache_tokens(model: LoadedModel, asked: int, share: float, rows: int) -> int:
    """Size of the KV cache in tokens: ``asked``, or what ``share`` of the free memory holds, and no more than rows can fill.

    Raises:
        RunError: ``M453``, there is no room for a useful cache.
    """
    per_token = sum(s.heads * (s.key_dim + s.value_dim) for s in model.layers) * torch.empty(0, dtype=model.dtype).element_size()
    if asked:
        tokens = asked
    else:
        if model.device.type == "cuda":
            found = accelerator_of(model.device)
            found.release_cache()
            free = found.memory(model.device).free
        else:
            import psutil

            # The pool is touched whole when it is made, and the machine's memory is everybody's.
            free = psutil.virtual_memory().available
            share = min(share, HOST_CACHE_BYTES / free)
        tokens = int(free * share) // per_token
    tokens = min(tokens, rows * (-(-model.context // 32) * 32)) // 32 * 32
    if tokens < 64:
        why = f"{tokens} tokens of {per_token} bytes fit"
        fix = "raise --transformers-kv-cache-tokens or --transformers-kv-cache-share"
        raise RunError("M453", "no room for the KV cache", owner=OWNER, why=why, fix=fix)
    return tokens

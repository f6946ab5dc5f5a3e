"""The model of one rank: built without memory, and after sharding filled with this rank's rows of the checkpoint."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.initialization import no_init_weights

from miles_core.errors import UsageError
from miles_core.hf import register_families
from miles_core.numerics.model import make_invariant
from miles_fsdp import value_head
from miles_fsdp.attention import INVARIANT, PACKED, SHARED
from miles_fsdp.conversion import converted_parameters, is_converted
from miles_fsdp.optimizer import local
from miles_fsdp.sharding import place_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from miles_core.hf import HfWeights
    from miles_fsdp.policy import Policy

OWNER = "miles-fsdp"


def read_config(directory: Path) -> Any:
    """The model's configuration.

    Raises:
        UsageError: ``directory`` has none that transformers understands (M340).
    """
    register_families()
    try:
        return AutoConfig.from_pretrained(str(directory), local_files_only=True)
    except (OSError, ValueError, KeyError) as cause:
        why = str(cause).splitlines()[0]
        raise UsageError(
            "M340", f"cannot read the model's config in {directory}", owner=OWNER, why=why, fix="give an HF directory"
        ) from cause


def build_empty(config: Any, attentions: Sequence[str], *, with_value_head: bool = False) -> nn.Module:
    """The model with parameters on the meta device and its buffers computed, as they are not all in checkpoints.

    Args:
        config: the model's configuration.
        attentions: implementations in order of preference; the first that the model can use is taken.
        with_value_head: replace the vocabulary head, see :mod:`miles_fsdp.value_head`.

    Raises:
        UsageError: transformers has no causal language model of this architecture, or none of ``attentions`` (M345); the
            attention is the invariant one, and the rest of the model cannot be (M279).
    """
    why = ""
    for attention in attentions:
        try:
            with _parameters_on_meta(), no_init_weights():
                first = "eager" if attention in (PACKED, INVARIANT, SHARED) else attention
                model = AutoModelForCausalLM.from_config(config, attn_implementation=first, dtype=torch.float32)
        except ValueError as cause:
            why = str(cause).splitlines()[0]
            continue
        if attention in (PACKED, INVARIANT, SHARED):
            if not model.is_backend_compatible():
                why = "it does not use transformers' attention interface"
                continue
            model.set_attn_implementation(attention)
        if attention == INVARIANT:
            make_invariant(model)
        model.tie_weights()
        if with_value_head:
            value_head.install(model)
        # Dropout would make two passes over the same tokens disagree; RL compares such passes.
        return model.eval()  # type: ignore[no-any-return]
    raise UsageError(
        "M345",
        f"cannot build a causal language model of type {config.model_type}",
        owner=OWNER,
        why=why,
        fix="use a checkpoint that AutoModelForCausalLM supports, or another --attn-implementation",
    )


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Move each parameter to the meta device as it is registered; buffers stay real."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            param = nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
        register(module, name, param)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def fill(policy: Policy, weights: HfWeights, device: torch.device, dtype: torch.dtype, *, seed: int = 0) -> None:
    """Give every parameter this rank's rows of the checkpoint, and every stored buffer its value.

    Args:
        device, dtype: of the shards.
        seed: of a value head that the checkpoint does not have.

    Raises:
        UsageError: tensors are missing or unexpected (M342), or of another shape (M343).
    """
    model = policy.model
    if is_converted(model):
        read = converted_parameters(model, weights)
    else:
        check_names(model, weights)
        aliases = parameter_names(model)

        def read(name: str, rows: tuple[int, int]) -> torch.Tensor:
            return weights.read(next(n for n in aliases[name] if n in weights.tensors), rows)

    _replace_parameters(policy, value_head.reader(model, weights, seed, read), device, dtype)
    if isinstance(policy, FSDPModule):
        # A conversion, even one that does nothing, makes FSDP take over the new shards and pad them: their storage is final then.
        policy._apply(lambda tensor: tensor)  # type: ignore[no-untyped-call]
    for name, buffer in model.named_buffers():
        if name in weights.tensors:
            buffer.copy_(weights.read(name))
    weights.close()


def _replace_parameters(
    policy: Policy, read: Callable[[str, tuple[int, int]], torch.Tensor], device: torch.device, dtype: torch.dtype
) -> None:
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in policy.model.modules():
        for attribute, param in module.named_parameters(recurse=False):
            owners.setdefault(id(param), []).append((module, attribute))
    parameters: list[tuple[str, nn.Parameter]] = list(policy.model.named_parameters())
    for name, param in parameters:
        rank, ranks = place_of(param)
        count = param.shape[0]
        share = -(-count // ranks)
        rows = min(rank * share, count), min((rank + 1) * share, count)
        stored = read(name, rows)
        # A copy always: what was read may be a view of the mapped file.
        part = torch.empty(stored.shape, dtype=dtype, device=device).copy_(stored)
        filled = _of_shards(part, param, device) if isinstance(param, DTensor) else _of_one_rank(part, param, name, policy)
        for module, attribute in owners[id(param)]:
            setattr(module, attribute, filled)


def _of_shards(part: torch.Tensor, param: DTensor, device: torch.device) -> nn.Parameter:
    whole: torch.Tensor = DTensor.from_local(
        part, param.device_mesh, param.placements, run_check=False, shape=param.shape, stride=param.stride()
    )
    if local(whole).device.type != device.type:
        # A distributed tensor is made on its mesh's device; one that lives in host memory is moved there afterwards.
        whole = whole.to(device)
    return nn.Parameter(whole, requires_grad=param.requires_grad)


def _of_one_rank(part: torch.Tensor, param: nn.Parameter, name: str, policy: Policy) -> nn.Parameter:
    """The parameter itself, in the precision of the computation; a value head's is fp32 always."""
    compute = torch.float32 if name in value_head.NAMES else policy.compute
    if part.dtype == compute:
        return nn.Parameter(part, requires_grad=param.requires_grad)
    filled = nn.Parameter(part.to(compute), requires_grad=param.requires_grad)
    policy.masters.add(name, part, filled)
    return filled


def parameter_names(model: nn.Module) -> dict[str, list[str]]:
    """Every parameter's names, the first in the model's order as key: a tied one has several."""
    first: dict[int, str] = {}
    names: dict[str, list[str]] = {}
    for name, param in model.named_parameters(remove_duplicate=False):
        names.setdefault(first.setdefault(id(param), name), []).append(name)
    return names


def check_names(model: nn.Module, weights: HfWeights) -> None:
    """Compare the model's tensors with the checkpoint's.

    Raises:
        UsageError: as :func:`fill`.
    """
    known = model.state_dict().keys()
    names = parameter_names(model)
    absent = {name for name, aliases in names.items() if not any(alias in weights.tensors for alias in aliases)}
    optional = set(value_head.NAMES) if value_head.of(model) is not None else set()
    missing = [name for name in names if name in absent - optional]
    ignored = set(left_out(model, weights))
    unexpected = [n for n in weights.tensors if n not in known and n not in ignored and not n.endswith("rotary_emb.inv_freq")]
    if missing or unexpected:
        parts = [
            f"{len(found)} {kind} ({_few(found)})" for kind, found in (("missing", missing), ("unexpected", unexpected)) if found
        ]
        raise UsageError(
            "M342",
            f"the weights in {weights.directory} do not fit {type(model).__name__}: {', '.join(parts)}",
            owner=OWNER,
            why="config and weights are of different models",
            fix="give a checkpoint whose config.json belongs to its weights",
            missing=missing,
            unexpected=unexpected,
        )
    for name, param in model.named_parameters():
        if name in absent:
            continue
        stored = next(alias for alias in names[name] if alias in weights.tensors)
        shape = weights.tensors[stored].shape
        if shape != tuple(param.shape):
            raise UsageError(
                "M343",
                f"{stored} in {weights.directory} has shape {list(shape)}, the model needs {list(param.shape)}",
                owner=OWNER,
                why="config and weights are of different models",
                fix="give a checkpoint whose config.json belongs to its weights",
            )


def left_out(model: nn.Module, weights: HfWeights) -> list[str]:
    """Tensors of a checkpoint that transformers' class knows of and has no parameters for, such as multi-token prediction."""
    patterns = [re.compile(pattern) for pattern in getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()]
    known = model.state_dict().keys()
    return [name for name in weights.tensors if name not in known and any(pattern.search(name) for pattern in patterns)]


def _few(names: list[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")

"""A model's weights under the names, and in the layout, of its checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from miles_core.errors import UsageError


class _NoCopies(TorchFunctionMode):
    """Makes ``contiguous`` return its argument, so that what only moves elements about yields views."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return args[0] if func is Tensor.contiguous else func(*args, **(kwargs or {}))


def checkpoint_views(module: Any) -> dict[str, Tensor]:
    """Views of all parameters and stored buffers by checkpoint name; writing to a view writes to the model.

    Tied weights appear under each of their names. Where transformers fuses a checkpoint's tensors into one parameter (the experts
    of a mixture), there is a view of the part for each.

    Raises:
        UsageError: ``M452``, a checkpoint tensor of this architecture is no view of a parameter.
    """
    state = {name: tensor.detach() for name, tensor in module.state_dict(keep_vars=True).items()}
    if not _converted(module):
        return state
    from transformers.core_model_loading import revert_weight_conversion

    with torch.no_grad(), _NoCopies():
        views: dict[str, Tensor] = revert_weight_conversion(module, dict(state))
    storages = {tensor.untyped_storage().data_ptr() for tensor in state.values()}
    for name, view in views.items():
        if view.untyped_storage().data_ptr() not in storages:
            raise UsageError(
                "M452",
                f"{type(module).__name__} cannot take new weights in place",
                owner="miles-transformers",
                why=f"{name} is computed from the model's parameters, not a part of one",
                fix="take another engine",
            )
    return views


def _converted(module: Any) -> bool:
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import PrefixChange
    except ImportError:
        # Before version 5 parameters had the checkpoint's names and layout.
        return False
    return any(not isinstance(c, PrefixChange) for c in get_model_conversion_mapping(module, add_legacy=False))

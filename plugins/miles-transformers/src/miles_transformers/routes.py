"""Which experts the tokens of a mixture of experts go to, noted while decoding."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from miles_core.errors import UsageError
from miles_transformers.model import OWNER, LoadedModel

_ROUTER = re.compile(r"Top[kK]Router$")
_LAYER = re.compile(r"\blayers\.(\d+)\.")


class RouteRecorder:
    """Stands behind every router of a model and keeps the experts that it chose, for all decoder layers; -1 in dense ones.

    Steps are noted in one tensor whose address never changes, so that a CUDA graph notes them too.

    Args:
        model: the model.
        rows: most rows of a step.

    Raises:
        UsageError: ``M436``, the model has no routers that say which experts they chose.
    """

    def __init__(self, model: LoadedModel, rows: int) -> None:
        module = model.module
        config = module.config.get_text_config()
        self.layers, self.top_k = int(config.num_hidden_layers), int(getattr(config, "num_experts_per_tok", 0))
        self._device = model.device
        self._steps = self._empty(rows)
        self._target: Tensor | None = None
        routers = [(name, part) for name, part in module.named_modules() if _ROUTER.search(type(part).__name__)]
        for name, router in routers:
            match = _LAYER.search(name)
            if match is not None:
                router.register_forward_hook(self._hook(int(match.group(1))))
        self._probe(module, bool(routers))

    def start_prefill(self, tokens: int) -> None:
        """Note the next pass, over this many tokens with padding."""
        self._target = self._empty(tokens)

    def start_step(self) -> None:
        """Note the next pass, a step."""
        self._target = self._steps

    def stop(self) -> None:
        """Note nothing more."""
        self._target = None

    def prefilled(self, rows: int) -> np.ndarray:
        """What the prefill noted, int16, ``[rows, T, layers, top_k]``, in host memory."""
        assert self._target is not None
        noted: np.ndarray = self._target.view(rows, -1, self.layers, self.top_k).cpu().numpy()
        return noted

    def stepped(self, rows: int) -> np.ndarray:
        """What the step noted, int16, ``[rows, layers, top_k]``, in host memory."""
        # A copy also where the tensor is in host memory: the next step overwrites it.
        return np.array(self._steps[:rows].cpu())

    def _empty(self, tokens: int) -> Tensor:
        return torch.full((tokens, self.layers, self.top_k), -1, dtype=torch.int16, device=self._device)

    def _hook(self, layer: int) -> Any:
        def note(_module: Any, _args: Any, output: Any) -> None:
            target = self._target
            if target is not None and isinstance(output, tuple) and output[-1].dim() == 2 and not output[-1].is_floating_point():
                target[: output[-1].shape[0], layer] = output[-1]

        return note

    def _probe(self, module: Any, routers: bool) -> None:
        """Pass one token through the model and see whether every router was noted."""
        why = "it has no routers of transformers' kind (...TopKRouter)"
        if routers and self.top_k:
            self.start_prefill(1)
            with torch.inference_mode():
                module(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=self._device), use_cache=False)
            noted = self.prefilled(1)
            self.stop()
            why = "" if (noted >= 0).any() else "its routers do not return the experts that they choose"
        if why:
            fix = "leave --use-rollout-routing-replay out; --use-routing-replay needs nothing of the engine"
            raise UsageError("M436", f"{type(module).__name__} cannot tell its routes", owner=OWNER, why=why, fix=fix)

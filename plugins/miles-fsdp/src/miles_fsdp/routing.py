"""Recording and replaying which experts the tokens of a mixture of experts go to."""

from __future__ import annotations

import contextlib
import functools
import re
from typing import TYPE_CHECKING, Any

import torch

from miles_core.errors import UsageError
from miles_core.training.routing import OWN_CHOICE, wrong_shape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from miles_core.protocols.backend import OutputRequest
    from miles_core.training.batch import MicroBatch

OWNER = "miles-fsdp"

ROUTERS = frozenset({"FlexOlmoTopKRouter", "MixtralTopKRouter", "OlmoeTopKRouter", "Qwen2MoeTopKRouter", "Qwen3MoeTopKRouter"})
"""Classes of transformers that return ``(logits, gates, experts)`` for each token, where the gates are those of the top k of a
softmax over all experts in float32, divided by their sum unless the router has a ``norm_topk_prob`` that is false."""

_LAYER = re.compile(r"\blayers\.(\d+)\.")

Routed = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class RouterReplay:
    """Stands in front of every router of a model.

    Replay replaces only the choice of experts: their gates are gathered from the current scores and renormalised as the model
    does it, so that gradients reach the routers. What was set by :meth:`start` holds until the next :meth:`start` or
    :meth:`stop`, and so also for layers that the backward pass recomputes.

    Args:
        model: the model; layers without experts are left alone.

    Raises:
        UsageError: it has no routers, or routers whose gates are computed in a way that is not known (M435).
    """

    def __init__(self, model: torch.nn.Module) -> None:
        config: Any = model.config
        text = config.get_text_config()
        self.layers = int(text.num_hidden_layers)
        self.top_k = int(getattr(text, "num_experts_per_tok", 0))
        self._given: torch.Tensor | None = None
        self._taken: dict[int, torch.Tensor] | None = None
        found = [(name, module) for name, module in model.named_modules() if type(module).__name__ in ROUTERS]
        if not found:
            raise UsageError(
                "M435",
                f"the routes of {config.model_type} cannot be replayed",
                owner=OWNER,
                why="it has no routers of the kinds " + ", ".join(sorted(ROUTERS)),
                fix="leave --use-routing-replay and --use-rollout-routing-replay out, or use another backend",
            )
        for name, router in found:
            match = _LAYER.search(name)
            assert match is not None, name
            forward = functools.partial(self._route, router.forward, getattr(router, "norm_topk_prob", True), int(match.group(1)))
            router.forward = forward  # type: ignore[assignment]

    def start(self, batch: MicroBatch, *, record: bool = False) -> None:
        """Take the routes of this micro-batch, if it has some; with ``record``, note where its tokens go.

        Raises:
            RunError: its routes are those of another model (M434).
        """
        self.stop()
        if batch.routes is not None:
            wanted = (batch.num_tokens, self.layers, self.top_k)
            if batch.routes.shape != wanted:
                raise wrong_shape("the routes to replay are", tuple(batch.routes.shape), wanted)
            self._given = batch.routes.to(batch.tokens.device)
        if record:
            self._taken = {}

    def taken(self) -> torch.Tensor:
        """The routes of the forward pass since :meth:`start`, int16, ``[tokens, layers, top_k]``, in host memory."""
        assert self._taken, "nothing was recorded"
        sample = next(iter(self._taken.values()))
        routes = torch.full((sample.shape[0], self.layers, self.top_k), OWN_CHOICE, dtype=torch.int16, device=sample.device)
        for layer, experts in self._taken.items():
            routes[:, layer] = experts
        return routes.cpu()

    def stop(self) -> None:
        """Let the routers choose by themselves."""
        self._given = self._taken = None

    def _route(self, forward: Callable[..., Routed], renormalise: bool, layer: int, hidden: torch.Tensor) -> Routed:
        logits, gates, experts = forward(hidden)
        if self._given is not None:
            given = self._given[:, layer].to(experts.dtype)
            experts = torch.where(given == OWN_CHOICE, experts, given)
            chosen = torch.softmax(logits, dim=-1, dtype=torch.float32).gather(-1, experts)
            if renormalise:
                chosen = chosen / chosen.sum(dim=-1, keepdim=True)
            gates = chosen.to(gates.dtype)
        if self._taken is not None:
            self._taken[layer] = experts.to(torch.int16)
        return logits, gates, experts


class Replays:
    """Those of a backend's weight sets by name, each made when a pass first needs it."""

    def __init__(self) -> None:
        self._made: dict[str, RouterReplay] = {}

    def of(self, name: str, model: torch.nn.Module) -> RouterReplay:
        """That of a weight set.

        Raises:
            UsageError: as :class:`RouterReplay` (M435).
        """
        if name not in self._made:
            self._made[name] = RouterReplay(model)
        return self._made[name]

    @contextlib.contextmanager
    def during(
        self, name: str, model: torch.nn.Module, micro_batches: Sequence[MicroBatch], request: OutputRequest
    ) -> Iterator[RouterReplay | None]:
        """That of a weight set for a pass which records or replays routes, stopped at its end; None for any other pass."""
        if not request.routes and all(batch.routes is None for batch in micro_batches):
            yield None
            return
        replay = self.of(name, model)
        try:
            yield replay
        finally:
            replay.stop()

    def clear(self) -> None:
        """Forget all."""
        self._made.clear()

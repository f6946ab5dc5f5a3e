"""Recording and replaying which experts the tokens of a mixture of experts go to."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.transformer.moe.router import TopKRouter

from miles_core.errors import UsageError
from miles_core.training.routing import OWN_CHOICE, wrong_shape
from miles_megatron.parallel import OWNER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from miles_core.protocols.backend import OutputRequest
    from miles_core.training.batch import MicroBatch
    from miles_megatron.policy import Policy
    from miles_megatron.rows import Rows

Chosen = tuple[torch.Tensor, torch.Tensor]


class Replay:
    """Stands in every router of a model where megatron-core asks for the experts of the highest scores.

    Only the choice is replaced: gates are made of the current scores of the experts chosen, as the model does it, so that gradients
    reach the routers. What was set by :meth:`begin` holds until the next or :meth:`stop`, and layers that the backward pass
    recomputes find their micro-batch again by the number that attention got before them.

    Raises:
        UsageError: the model has no routers (M435).
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.layers = int(policy.config.num_layers)
        self.top_k = int(policy.config.moe_router_topk)
        self._rows: list[Rows] = []
        self._given: dict[int, torch.Tensor] = {}
        self._taken: list[dict[int, torch.Tensor]] | None = None
        routers = [module for chunk in policy.chunks for module in chunk.decoder.modules() if isinstance(module, TopKRouter)]
        if not policy.config.num_moe_experts:
            raise UsageError(
                "M435",
                "the model's routes cannot be replayed",
                owner=OWNER,
                why="it has no routers",
                fix="leave --use-routing-replay and --use-rollout-routing-replay out",
            )
        for router in routers:
            router.router_replay = _Layer(self, router.layer_number - 1)  # type: ignore[assignment]

    def begin(self, rows: Sequence[Rows], *, record: bool) -> None:
        """Take the routes of these micro-batches, where they have some; with ``record``, note where their tokens go.

        Raises:
            RunError: routes are those of another model (M434).
        """
        self.stop()
        self._rows = list(rows)
        self._given = {number: self._local(each) for number, each in enumerate(rows) if each.batch.routes is not None}
        if record:
            self._taken = [{} for _ in rows]

    def taken(self, number: int) -> torch.Tensor:
        """The routes of a micro-batch, int16, ``[tokens, layers, top_k]``, in host memory. Collective."""
        assert self._taken is not None, "nothing was recorded"
        rows, context = self._rows[number], self._policy.context
        found, shape = self._taken[number], rows.batch.tokens.shape
        whole = torch.full((*shape, self.layers, self.top_k), OWN_CHOICE, dtype=torch.int16)
        for layer, experts in sorted(found.items()):
            held = experts.to(torch.int16)
            if self._policy.config.sequence_parallel:
                held = _all(held, parallel_state.get_tensor_model_parallel_group()).flatten(0, 1)
            held = held.unflatten(0, (-1, shape[0]))  # type: ignore[no-untyped-call]
            if context is not None:
                held = _all(held, context.group).transpose(0, 1).flatten(0, 1)
            whole[:, :, layer] = held.transpose(0, 1)[:, : shape[1]].cpu()
        return whole.flatten(0, 1)

    def stop(self) -> None:
        """Let the routers choose by themselves."""
        self._rows, self._given, self._taken = [], {}, None

    def choose(self, layer: int, scores: torch.Tensor, own: Chosen) -> Chosen:
        """Scores and numbers of the experts of a layer's tokens."""
        number = self._policy.current
        if number in self._given:
            given = self._given[number][:, layer].to(own[1].dtype)
            experts = torch.where(given == OWN_CHOICE, own[1], given)
            own = scores.gather(1, experts), experts
        if self._taken is not None:
            self._taken[number][layer] = own[1]
        return own

    def _local(self, rows: Rows) -> torch.Tensor:
        """The routes of this rank's tokens in the order of its hidden states, ``[T, layers, top_k]``."""
        batch = rows.batch
        assert batch.routes is not None
        wanted = (batch.num_tokens, self.layers, self.top_k)
        if batch.routes.shape != wanted:
            raise wrong_shape("the routes to replay are", tuple(batch.routes.shape), wanted)
        routes = batch.routes.to(batch.tokens.device).unflatten(0, batch.tokens.shape)  # type: ignore[no-untyped-call]
        routes = torch.nn.functional.pad(routes, (0, 0, 0, 0, 0, rows.padding), value=OWN_CHOICE)
        if self._policy.context is not None:
            routes = routes[:, self._policy.context.rank :: self._policy.context.size]
        routes = routes.transpose(0, 1).flatten(0, 1)
        if self._policy.config.sequence_parallel:
            parts = parallel_state.get_tensor_model_parallel_world_size()
            routes = routes.chunk(parts)[parallel_state.get_tensor_model_parallel_rank()]
        return routes.contiguous()  # type: ignore[no-any-return]


class _Layer:
    """One router's, as megatron-core calls it."""

    def __init__(self, replay: Replay, layer: int) -> None:
        self._replay = replay
        self.layer_number = layer

    def get_replay_topk(
        self,
        scores: torch.Tensor,
        topk: int,
        num_groups: int | None = None,
        group_topk: int | None = None,
        default_compute_topk: Callable[..., Chosen] = torch.topk,
    ) -> Chosen:
        """The scores and numbers of the experts to send each token to, ``[T, top_k]`` each."""
        own = default_compute_topk(scores, topk, num_groups=num_groups, group_topk=group_topk)
        return self._replay.choose(self.layer_number, scores, own)


def _all(held: torch.Tensor, group: Any) -> torch.Tensor:
    """What each rank of a group holds, ``[ranks, ...]``."""
    size = dist.get_world_size(group)
    held = held.contiguous()
    # No backend exchanges int16.
    found = torch.empty((size, *held.shape[:-1], 2 * held.shape[-1]), dtype=torch.uint8, device=held.device)
    dist.all_gather_into_tensor(found.flatten(0, 1), held.view(torch.uint8), group=group)
    return found.view(torch.int16)


class Replays:
    """Those of a backend's models by name, each made when a pass first needs it."""

    def __init__(self) -> None:
        self._made: dict[str, Replay] = {}

    def of(self, name: str, policy: Policy) -> Replay:
        """That of a model.

        Raises:
            UsageError: as :class:`Replay` (M435).
        """
        if name not in self._made:
            self._made[name] = Replay(policy)
        return self._made[name]

    @contextlib.contextmanager
    def during(
        self, name: str, policy: Policy, micro_batches: Sequence[MicroBatch], request: OutputRequest
    ) -> Iterator[Replay | None]:
        """That of a model for a pass which records or replays routes, stopped at its end; None for any other pass."""
        if not request.routes and all(batch.routes is None for batch in micro_batches):
            yield None
            return
        replay = self.of(name, policy)
        try:
            yield replay
        finally:
            replay.stop()

    def clear(self) -> None:
        """Forget all."""
        self._made.clear()

"""Micro-batches through the pipeline, by megatron-core's schedules."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func

from miles_core.errors import RunError
from miles_core.training.batch import ModelOutputs
from miles_megatron.parallel import OWNER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from miles_core.protocols.backend import LossCallback, OutputRequest
    from miles_core.training.batch import MicroBatch
    from miles_megatron.mtp import MtpLoss
    from miles_megatron.policy import Policy
    from miles_megatron.routing import Replay


class Pass:
    """One pass of all micro-batches through a model, whose schedule is that of the pipeline's and virtual stages' numbers.

    Args:
        policy: the model.
        chunks: its parts, or what wraps them.
        request: what to compute.
        replay: what records or replays the routes of a mixture of experts; None if nothing does.
        ahead: loss of multi-token prediction that is trained along; None for none.
    """

    def __init__(
        self,
        policy: Policy,
        chunks: Sequence[torch.nn.Module],
        request: OutputRequest,
        replay: Replay | None = None,
        ahead: MtpLoss | None = None,
    ) -> None:
        self._policy = policy
        self._chunks = list(chunks)
        self._request = request
        self._replay = replay
        self._ahead = ahead

    def forward(self, micro_batches: Sequence[MicroBatch]) -> list[ModelOutputs]:
        """Outputs without gradients, in order, on the last stage; nothing elsewhere. Collective."""
        found: list[ModelOutputs] = []

        def finish(number: int, hidden: torch.Tensor) -> torch.Tensor:
            rows = self._rows[number]
            if number < len(micro_batches):
                found.append(self._policy.outputs(hidden, rows, self._request, entropy_grad=False))
            return hidden.new_zeros(())

        with torch.no_grad():
            self._run(micro_batches, finish, forward_only=True)
        return found

    def train(self, micro_batches: Sequence[MicroBatch], loss: LossCallback) -> None:
        """Forward and backward passes of the callback's scalars; gradients are summed over ranks at the end. Collective.

        Raises:
            RunError: the loss does not depend on the model (M430).
        """
        request = self._request

        def finish(number: int, hidden: torch.Tensor) -> torch.Tensor:
            rows = self._rows[number]
            outputs = self._policy.outputs(hidden, rows, request, entropy_grad=request.entropy)
            if number >= len(micro_batches):
                given = outputs.log_probs if outputs.values is None else outputs.values
                assert given is not None
                nothing = 0.0 * given.sum()
                return nothing if self._ahead is None else nothing + self._ahead(hidden, rows, number)
            scalar = loss(micro_batches[number], outputs)
            if not scalar.requires_grad:
                raise RunError(
                    "M430",
                    "the loss does not depend on the model's outputs",
                    owner=OWNER,
                    why="the loss returned a tensor without a gradient",
                    fix="multiply masked terms by the log-probs' mask in place of leaving them out",
                )
            return scalar if self._ahead is None else scalar + self._ahead(hidden, rows, number)

        self._run(micro_batches, finish, forward_only=False)

    def _run(
        self, micro_batches: Sequence[MicroBatch], finish: Callable[[int, torch.Tensor], torch.Tensor], *, forward_only: bool
    ) -> None:
        self._rows = self._policy.rows(micro_batches, 0 if self._ahead is None else self._ahead.layers)
        if self._ahead is not None:
            self._ahead.begin(self._rows, len(micro_batches))
        if len(self._chunks) > 1:
            # Interleaved stages take micro-batches in groups of the pipeline's size; what fills the last group counts for nothing.
            self._rows += self._rows[:1] * (-len(self._rows) % parallel_state.get_pipeline_model_parallel_world_size())
        self._policy.begin(self._rows)
        if self._replay is not None:
            self._replay.begin(self._rows, record=self._request.routes and forward_only)
        no_tokens = torch.zeros((), dtype=torch.int)

        def step(numbers: Iterator[int], chunk: torch.nn.Module, *_: Any) -> tuple[torch.Tensor, Any]:
            number = next(numbers)
            hidden = self._policy.stage(chunk, self._rows[number], number)
            # The scalar is normalised already: of no tokens, so that nothing is divided.
            return hidden, lambda output: (finish(number, output), no_tokens, {})

        run = get_forward_backward_func()
        shared = 1 if self._policy.context is None else self._policy.context.size
        longest = max(rows.tokens.shape[1] for rows in self._rows) * shared
        with _switched(self._chunks, training=not forward_only):
            run(
                forward_step_func=step,
                data_iterator=[iter(range(len(self._rows))) for _ in self._chunks],
                model=self._chunks if len(self._chunks) > 1 else self._chunks[0],
                num_microbatches=len(self._rows),
                seq_length=longest,
                micro_batch_size=max(rows.tokens.shape[0] for rows in self._rows),
                forward_only=forward_only,
            )


@contextlib.contextmanager
def _switched(chunks: Sequence[torch.nn.Module], *, training: bool) -> Iterator[None]:
    """Modules recompute activations while they train; dropout is off anyway."""
    for chunk in chunks:
        chunk.train(training)
    yield

"""What a model of megatron-core computes of a micro-batch: log-probs and entropy, or values, of its response tokens.

megatron-core's ``GPTModel`` runs the layers. It gets rotary angles by each token's own position, so that packed, padded and shared
rows need no case of their own, and gives out hidden states, of which only those that predict a response token reach the head.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state, tensor_parallel

from miles_core.errors import UsageError
from miles_core.training.batch import ModelOutputs
from miles_core.training.logprobs import token_outputs, token_outputs_from_hidden
from miles_megatron import value_head
from miles_megatron.attention import PackedAttention, Packings
from miles_megatron.context import gathered
from miles_megatron.models import activation
from miles_megatron.models.norm import RMSNorm
from miles_megatron.parallel import OWNER, context_ranks
from miles_megatron.rotary import Positions
from miles_megatron.rows import Rows
from miles_megatron.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Sequence

    from miles_core.protocols.backend import OutputRequest
    from miles_core.training.batch import MicroBatch


class Policy:
    """This rank's parts of one model, and how micro-batches go through them.

    Args:
        chunks: ``GPTModel``, one for each virtual pipeline stage of this rank.
        vocabulary: tokens of the model, without padding.
        compute: precision of the computation.
        compiled: compile norms, rotary positions, log-probs and entropy.

    Raises:
        UsageError: a chunk has other positions or attention (M554).
    """

    def __init__(self, chunks: Sequence[torch.nn.Module], vocabulary: int, *, compute: torch.dtype, compiled: bool = False) -> None:
        self.chunks: list[Any] = list(chunks)
        self.config: Any = self.chunks[0].config
        self.compute = compute
        self.context = context_ranks()
        self._packings = Packings()
        self._packings.angles = self._angles
        if compiled:
            activation.install(self.chunks)
        for chunk in self.chunks:
            _prepare(chunk, self._packings, compiled)
        self._rows: list[Rows] = []
        self._turned: tuple[int, torch.Tensor] | None = None
        self._of_logits = functools.partial(token_outputs, compiled=compiled)
        tensor = parallel_state.get_tensor_model_parallel_world_size()
        self._group = parallel_state.get_tensor_model_parallel_group()
        self._vocabulary: Vocabulary | None = None
        if tensor > 1:
            rank = parallel_state.get_tensor_model_parallel_rank()
            self._vocabulary = Vocabulary(vocabulary, rank * (self.chunks[0].vocab_size // tensor), self._group)
        self._size = vocabulary
        self._multiple = (tensor if self.config.sequence_parallel else 1) * (1 if self.context is None else self.context.size)

    @property
    def current(self) -> int:
        """Number of the micro-batch that a layer computes or computes anew."""
        return self._packings.current

    def rows(self, batches: Sequence[MicroBatch], ahead: int = 0) -> list[Rows]:
        """This rank's part of each micro-batch. Interleaved stages exchange tensors of one shape: all get the longest's length.

        Args:
            ahead: layers of multi-token prediction that run.
        """
        lengths = [-(-batch.tokens.shape[1] // self._multiple) * self._multiple for batch in batches]
        if len(self.chunks) > 1:
            lengths = [max(lengths)] * len(lengths)
        return [
            Rows.of(batch, length=length, context=self.context, compute=self.compute, ahead=ahead)
            for batch, length in zip(batches, lengths, strict=True)
        ]

    def begin(self, rows: Sequence[Rows]) -> None:
        """Start a pass over these micro-batches."""
        self._packings.clear()
        self._packings.update((number, each.packing) for number, each in enumerate(rows))
        self._rows, self._turned = list(rows), None

    def _angles(self, number: int) -> torch.Tensor:
        """Rotary angles of a micro-batch; those of the one that was asked for last are kept."""
        if self._turned is None or self._turned[0] != number:
            self._turned = number, self.chunks[0].rotary_pos_emb.angles(self._rows[number].position_ids)
        return self._turned[1]

    def stage(self, chunk: torch.nn.Module, rows: Rows, number: int) -> torch.Tensor:
        """One chunk's output, ``[T, B, H]``, where sequence parallelism leaves this rank its part of T.

        Args:
            chunk: one of :attr:`chunks`, or what wraps it.
            number: of the micro-batch, in the pass that :meth:`begin` started.
        """
        # Layers pass the mask on, also to what the backward pass recomputes; attention finds the micro-batch's packing by it.
        return chunk(input_ids=rows.tokens, position_ids=rows.position_ids, attention_mask=torch.tensor(number, device="cpu"))  # type: ignore[no-any-return]

    def outputs(self, hidden: torch.Tensor, rows: Rows, request: OutputRequest, *, entropy_grad: bool) -> ModelOutputs:
        """Outputs of the whole micro-batch from the last stage's hidden states. Collective among tensor and context ranks."""
        last = self.chunks[-1]
        head = value_head.of(last)
        assert request.values == (head is not None), "values are of a critic, log-probs of a policy"
        if head is not None:
            found = ModelOutputs(values=head(self._chosen(hidden, rows.logit_index, shared=False).float())[:, 0])
        else:
            found = self.predicted(hidden, rows.logit_index, rows.targets, head_weight(last), request, entropy_grad=entropy_grad)
        if rows.share is None or self.context is None:
            return found
        parts = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
        whole = {name: gathered(part, rows.share, self.context) for name, part in parts.items() if part is not None}
        return ModelOutputs(**whole)

    def predicted(
        self,
        hidden: torch.Tensor,
        index: torch.Tensor,
        targets: torch.Tensor,
        weight: torch.Tensor,
        request: OutputRequest,
        *,
        entropy_grad: bool,
    ) -> ModelOutputs:
        """Log-probs and entropy of some tokens. Collective among tensor ranks.

        Args:
            hidden: as :meth:`stage` gives it.
            index: of the rank's flattened tokens, those that predict one, ``[n]``.
            targets: the tokens that are predicted, ``[n]``.
            weight: of the vocabulary head, this rank's part.
            request, entropy_grad: as in :func:`miles_core.training.logprobs.token_outputs`.
        """
        chosen = self._chosen(hidden, index, shared=True)
        if self._vocabulary is None:
            # Rows behind the vocabulary are padding.
            weight = weight[: self._size]
        of_logits = self._of_logits if self._vocabulary is None else self._vocabulary.token_outputs
        return token_outputs_from_hidden(
            chosen, lambda part: F.linear(part, weight), targets, request, entropy_grad=entropy_grad, of_logits=of_logits
        )

    def _chosen(self, hidden: torch.Tensor, index: torch.Tensor, *, shared: bool) -> torch.Tensor:
        """Hidden states ``[n, H]`` for a head; ``shared``: each tensor rank has a part of it, so that their gradients add up."""
        sequence = self.config.sequence_parallel
        if sequence:
            hidden = tensor_parallel.gather_from_sequence_parallel_region(
                hidden, tensor_parallel_output_grad=shared, group=self._group
            )
        chosen = hidden.transpose(0, 1).flatten(0, 1).index_select(0, index)
        if shared and not sequence and self._vocabulary is not None:
            chosen = tensor_parallel.copy_to_tensor_model_parallel_region(chosen, group=self._group)
        return chosen

    def embedded(self, tokens: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """Embeddings without gradients, ``[T, B, H]``, shared out as hidden states are. Collective among tensor ranks.

        Args:
            tokens: ``[B, T]``.
            table: the embedding, this rank's part of the vocabulary.
        """
        if self._vocabulary is None:
            return F.embedding(tokens, table).transpose(0, 1).contiguous()
        local = tokens - self._vocabulary.first
        elsewhere = (local < 0) | (local >= len(table))
        found = F.embedding(local.masked_fill(elsewhere, 0), table).masked_fill(elsewhere[..., None], 0.0)
        whole = found.transpose(0, 1).contiguous()
        if self.config.sequence_parallel:
            return tensor_parallel.reduce_scatter_to_sequence_parallel_region(whole, group=self._group)  # type: ignore[no-any-return]
        return tensor_parallel.reduce_from_tensor_model_parallel_region(whole, group=self._group)  # type: ignore[no-any-return]


def head_weight(chunk: Any) -> torch.Tensor:
    """The vocabulary head's, ``[vocabulary, H]``, of this tensor-parallel rank."""
    for hook in chunk.output_layer._forward_pre_hooks.values():
        # What waits for parameters that are still being gathered stands before the module's own forward pass.
        hook(chunk.output_layer, ())
    if chunk.share_embeddings_and_output_weights:
        return chunk.shared_embedding_or_output_weight()  # type: ignore[no-any-return]
    return chunk.output_layer.weight  # type: ignore[no-any-return]


def _prepare(chunk: Any, packings: Packings, compiled: bool) -> None:
    if chunk.position_embedding_type != "rope":
        what = f"a chunk of the model has {chunk.position_embedding_type} positions"
        raise UsageError("M554", what, owner=OWNER, fix="return a GPTModel of megatron-core with rotary positions")
    attentions = [module for module in chunk.modules() if isinstance(module, PackedAttention)]
    if len(attentions) < len(chunk.decoder.layers):
        why = "the core attention of a layer is not miles_megatron.attention.PackedAttention"
        fix = "name it in the layers' spec"
        raise UsageError("M554", "a chunk of the model cannot compute packed rows", owner=OWNER, why=why, fix=fix)
    for attention in attentions:
        attention.packings = packings
    for module in chunk.modules() if compiled else ():
        if isinstance(module, RMSNorm):
            module.compiled = True
        if isinstance(getattr(module, "core_attention", None), PackedAttention):
            module.core_attention.fuse(getattr(module, "q_layernorm", None), getattr(module, "k_layernorm", None))
    if not isinstance(chunk.rotary_pos_emb, Positions):
        chunk.rotary_pos_emb = Positions(chunk.rotary_pos_emb)
    chunk._postprocess = _hidden_states


def _hidden_states(hidden_states: torch.Tensor, **_: Any) -> torch.Tensor:
    return hidden_states

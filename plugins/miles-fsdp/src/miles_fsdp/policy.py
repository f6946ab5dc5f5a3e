"""The root module: a causal LM that turns a micro-batch into log-probs and entropy, or values, of its response tokens."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.modeling_outputs import MoeModelOutputWithPast

from miles_core.training.logprobs import token_outputs, token_outputs_from_hidden
from miles_fsdp import value_head
from miles_fsdp.attention import INVARIANT, PACKED, Packing, runs_variable_length
from miles_fsdp.context import Shard, gathered
from miles_fsdp.masters import Masters
from miles_fsdp.shared_attention import shared_row

if TYPE_CHECKING:
    from miles_core.protocols.backend import OutputRequest
    from miles_core.training.batch import MicroBatch
    from miles_fsdp.context import Context, Sharing


class Policy(nn.Module):
    """Wraps the model so that FSDP's root forward covers the vocabulary head and the log-probs too.

    Only the hidden states that predict response tokens reach the head. Context-parallel ranks compute their own tokens, and each
    gives out those of all.

    Args:
        model: the causal language model.
        compute: precision of the computation.
        context: the ranks that share a micro-batch's tokens; None if this one has them for itself.
        sharing: how those share the model's attention.
        compiled: compile log-probs and entropy.
    """

    def __init__(
        self,
        model: Any,
        *,
        compute: torch.dtype,
        context: Context | None = None,
        sharing: Sharing | None = None,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.attention: str = model.config._attn_implementation
        self.compute = compute
        self.context, self.sharing = context, sharing
        self.plain_head = value_head.of(model) is not None or _head_is_last(model, self.head)
        self.masters = Masters()
        self._of_logits = functools.partial(token_outputs, compiled=compiled)

    @property
    def head(self) -> nn.Module:
        """The vocabulary or value head. No attribute, which would register the module under a second name."""
        return value_head.of(self.model) or self.model.get_output_embeddings()  # type: ignore[no-any-return]

    def weights(self) -> dict[str, torch.Tensor]:
        """What training updates and checkpoints hold, by name: parameters, or their masters where they have some."""
        return {name: self.masters.of(name, param) for name, param in self.model.named_parameters()}

    def forward(self, batch: MicroBatch, request: OutputRequest, entropy_grad: bool) -> tuple[torch.Tensor | None, ...]:
        """Log-probs, entropy and values, ``[N]`` each, and logits, ``[N, V]``, or None where not requested.

        A value head gives values only.
        """
        assert request.values == (value_head.of(self.model) is not None), "values are of a critic, log-probs of a policy"
        shard = None if self.context is None else Shard.of(batch, self.context)
        inputs = self._inputs(batch) if shard is None else self._shared_inputs(shard)
        rows, targets = batch.logit_index, batch.targets
        if shard is not None:
            rows, targets = shard.logit_index, targets[shard.mine]
        if self.plain_head:
            hidden = self.model.base_model(**inputs).last_hidden_state.flatten(0, 1).index_select(0, rows)
            # One output a token needs no chunks, and the value head, sharded by itself, must run as often on every rank.
            whole = dataclasses.replace(request, chunk_size=-1) if request.values else request
            # The value head is fp32 whatever the rest is.
            hidden = hidden.float() if request.values else hidden
            outputs = token_outputs_from_hidden(
                hidden, self.head, targets, whole, entropy_grad=entropy_grad, of_logits=self._of_logits
            )
        else:
            logits = _logits(self.model, self.head, inputs, rows)
            outputs = self._of_logits(logits, targets, request, entropy_grad=entropy_grad)
        # FSDP does not want a view of what it hooks: values are one of the head's output.
        values = outputs.values.clone() if outputs.values is not None else None
        found = outputs.log_probs, outputs.entropy, values, outputs.logits
        if shard is None or self.context is None:
            return found
        return tuple(None if each is None else gathered(each, shard, self.context) for each in found)

    def _inputs(self, batch: MicroBatch) -> dict[str, Any]:
        inputs: dict[str, Any] = {"input_ids": batch.tokens, "use_cache": False}
        if batch.cu_seqlens is None:
            # Right padding: every model counts positions from 0 by itself.
            return inputs | {"attention_mask": batch.attention_mask}
        inputs["position_ids"] = batch.position_ids
        if self.attention in (PACKED, INVARIANT):
            inputs["packing"] = Packing.of(batch, varlen=runs_variable_length(self.attention, batch.tokens.device, self.compute))
        elif self.attention.startswith("flash"):
            bounds = batch.cu_seqlens
            inputs |= {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds}
            inputs |= {"max_length_q": batch.max_seqlen, "max_length_k": batch.max_seqlen}
        return inputs

    def _shared_inputs(self, shard: Shard) -> dict[str, Any]:
        assert self.sharing is not None
        varlen = runs_variable_length(self.attention, shard.tokens.device, self.compute)
        row = shared_row(shard.whole, self.sharing, varlen=varlen)
        inputs = {"input_ids": shard.tokens, "position_ids": shard.position_ids, "use_cache": False}
        return inputs | {"sharing": self.sharing, "row": row}


def _logits(model: nn.Module, head: nn.Module, inputs: dict[str, Any], rows: torch.Tensor) -> torch.Tensor:
    """Logits of the given rows of the flattened tokens, ``[N, vocabulary]``, after whatever the model does to its head's output."""

    def select(_: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (args[0].flatten(0, 1).index_select(0, rows)[None],)

    handle = head.register_forward_pre_hook(select)
    try:
        return model(**inputs).logits.flatten(0, 1)  # type: ignore[no-any-return]
    finally:
        handle.remove()


def _head_is_last(model: Any, head: nn.Module) -> bool:
    """Whether the model returns its head's output as it is, without scaling or soft-capping.

    Asks the model itself, on the meta device and with its body left out.
    """
    seen: list[torch.Tensor] = []
    body = model.base_model
    hidden = torch.empty((1, 2, model.config.get_text_config().hidden_size), device="meta")
    handle = head.register_forward_hook(lambda _m, _a, out: seen.append(out))
    body.forward = lambda *_, **__: MoeModelOutputWithPast(last_hidden_state=hidden)
    try:
        with torch.no_grad():
            logits = model(input_ids=torch.zeros((1, 2), dtype=torch.int64, device="meta"), use_cache=False).logits
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        # The model wants more of its body than hidden states: asking it for whole logits is always right.
        return False
    finally:
        handle.remove()
        del body.forward
    return len(seen) == 1 and logits is seen[0]

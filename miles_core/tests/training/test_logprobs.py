from __future__ import annotations

import functools

import pytest
import torch

from miles_core.protocols.backend import OutputRequest
from miles_core.training import logprobs
from miles_core.training.logprobs import token_outputs, token_outputs_from_hidden

ROWS, VOCABULARY, HIDDEN = 11, 17, 5


@pytest.fixture
def drawn():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(ROWS, VOCABULARY, generator=generator) * 3
    targets = torch.randint(0, VOCABULARY, (ROWS,), generator=generator)
    weights = torch.randn(2, ROWS, generator=generator)
    return logits, targets, weights


def plain(logits, targets, temperature):
    every = torch.log_softmax(logits.float() / temperature, -1)
    return every.gather(1, targets[:, None])[:, 0], -(every.exp() * every).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("chunk_size", [-1, 1, 4, 100])
@pytest.mark.parametrize("entropy_grad", [True, False])
def test_values_and_gradients_equal_log_softmax(drawn, temperature, chunk_size, entropy_grad):
    logits, targets, weights = drawn
    ours, wanted = (logits.clone().requires_grad_() for _ in range(2))
    request = OutputRequest(entropy=True, temperature=temperature, chunk_size=chunk_size)
    outputs = token_outputs(ours, targets, request, entropy_grad=entropy_grad)
    log_probs, entropy = plain(wanted, targets, temperature)
    assert torch.allclose(outputs.log_probs, log_probs, atol=1e-5)
    assert torch.allclose(outputs.entropy, entropy, atol=1e-5)
    assert outputs.entropy.requires_grad == entropy_grad
    ((outputs.log_probs * weights[0]).sum() + (outputs.entropy * weights[1]).sum()).backward()
    ((log_probs * weights[0]).sum() + (entropy * weights[1] * entropy_grad).sum()).backward()
    assert torch.allclose(ours.grad, wanted.grad, atol=1e-6)


def test_chunks_change_nothing(drawn):
    logits, targets, _ = drawn
    whole, chunked = (
        token_outputs(logits, targets, OutputRequest(entropy=True, chunk_size=size), entropy_grad=False) for size in (-1, 3)
    )
    assert torch.equal(whole.log_probs, chunked.log_probs)
    assert torch.equal(whole.entropy, chunked.entropy)


def test_large_vocabularies_are_taken_in_parts(drawn, monkeypatch):
    logits, targets, weights = drawn
    request = OutputRequest(entropy=True, temperature=0.7)
    found = []
    for floats in (2**28, 3 * VOCABULARY):
        monkeypatch.setattr(logprobs, "FLOATS", floats)
        x = logits.clone().requires_grad_()
        outputs = token_outputs(x, targets, request, entropy_grad=True)
        ((outputs.log_probs * weights[0]).sum() + (outputs.entropy * weights[1]).sum()).backward()
        found.append((outputs.log_probs, outputs.entropy, x.grad))
    assert all(torch.equal(whole, parts) for whole, parts in zip(*found, strict=True))


def test_compiled_they_are_the_same(drawn, monkeypatch):
    # The compiler's front half: writing the programs out takes longer than all other tests of this file.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    logits, targets, weights = drawn
    logits[2, 5], targets[2] = float("-inf"), 4
    request = OutputRequest(entropy=True, temperature=0.7)
    found = []
    for compiled in (False, True):
        x = logits.clone().requires_grad_()
        outputs = token_outputs(x, targets, request, entropy_grad=True, compiled=compiled)
        ((outputs.log_probs * weights[0]).sum() + (outputs.entropy * weights[1]).sum()).backward()
        found.append((outputs.log_probs, outputs.entropy, x.grad))
    assert all(torch.allclose(plain, fused, atol=1e-5) for plain, fused in zip(*found, strict=True))
    assert found[1][2].isfinite().all()


def test_double_precision_passes_gradcheck(drawn):
    logits, targets, _ = drawn
    request = OutputRequest(entropy=True, temperature=0.7, chunk_size=4)

    def both(x):
        outputs = token_outputs(x, targets, request, entropy_grad=True)
        return outputs.log_probs, outputs.entropy

    assert torch.autograd.gradcheck(both, logits.double().requires_grad_())


def test_impossible_tokens_have_probability_zero(drawn):
    logits, targets, _ = drawn
    targets = targets.clamp(max=VOCABULARY - 3)
    masked = logits.clone()
    masked[:, -2:] = float("-inf")
    masked.requires_grad_()
    outputs = token_outputs(masked, targets, OutputRequest(entropy=True), entropy_grad=True)
    wanted = plain(logits[:, :-2], targets, 1.0)
    assert torch.allclose(outputs.log_probs, wanted[0], atol=1e-5)
    assert torch.allclose(outputs.entropy, wanted[1], atol=1e-5)
    (outputs.log_probs.sum() + outputs.entropy.sum()).backward()
    assert torch.isfinite(masked.grad).all()
    assert not masked.grad[:, -2:].any()


def test_half_precision_logits_are_widened_first(drawn):
    logits, targets, _ = drawn
    half = logits.bfloat16().requires_grad_()
    outputs = token_outputs(half, targets, OutputRequest(temperature=0.7), entropy_grad=False)
    assert outputs.log_probs.dtype == torch.float32
    assert outputs.entropy is None
    assert torch.allclose(outputs.log_probs, plain(half.detach(), targets, 0.7)[0], atol=1e-5)
    outputs.log_probs.sum().backward()
    assert half.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("chunk_size", [-1, 4])
def test_from_hidden_equals_from_logits(drawn, chunk_size):
    _, targets, weights = drawn
    generator = torch.Generator().manual_seed(1)
    head = torch.nn.Linear(HIDDEN, VOCABULARY)
    hidden = torch.randn(ROWS, HIDDEN, generator=generator, requires_grad=True)
    results = []
    for made in (
        token_outputs(head(hidden), targets, OutputRequest(entropy=True), entropy_grad=True),
        token_outputs_from_hidden(hidden, head, targets, OutputRequest(entropy=True, chunk_size=chunk_size), entropy_grad=True),
    ):
        total = (made.log_probs * weights[0]).sum() + (made.entropy * weights[1]).sum()
        results.append((made.log_probs, *torch.autograd.grad(total, (hidden, head.weight, head.bias))))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*results, strict=True))


def test_the_head_never_sees_more_rows_than_a_chunk(drawn):
    _, targets, _ = drawn
    head = torch.nn.Linear(HIDDEN, VOCABULARY)
    seen = []
    hidden = torch.randn(ROWS, HIDDEN, requires_grad=True)

    def watched(rows):
        seen.append(len(rows))
        return head(rows)

    outputs = token_outputs_from_hidden(hidden, watched, targets, OutputRequest(chunk_size=4), entropy_grad=False)
    outputs.log_probs.sum().backward()
    assert max(seen) == 4
    assert sum(seen) == 2 * ROWS  # once forward, once in the backward pass


def test_values_are_not_divided_by_the_temperature(drawn):
    logits, targets, _ = drawn
    request = OutputRequest(log_probs=False, values=True, temperature=0.5)
    outputs = token_outputs(logits[:, :1].bfloat16(), targets, request, entropy_grad=False)
    assert torch.equal(outputs.values, logits[:, 0].bfloat16().float())
    assert outputs.log_probs is None

"""Bits that do not depend on batch, padding, packing, cache or threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from miles_core.numerics.activation import invariant_silu
from miles_core.numerics.attention import causal, invariant_attention
from miles_core.numerics.linear import invariant_linear

THREADS = (1, 2, 3, 8)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


@pytest.mark.parametrize(("inner", "outer"), [(64, 272), (96, 40), (37, 53), (1024, 1000), (4096, 64)])
def test_rows_of_a_linear_layer_do_not_know_their_neighbours(inner: int, outer: int) -> None:
    random = torch.Generator().manual_seed(inner)
    x, bias = torch.randn(150, inner, generator=random), torch.randn(outer, generator=random)
    weight = torch.randn(outer, inner, generator=random)
    torch.set_num_threads(1)
    whole = invariant_linear(x, weight, bias)
    assert torch.allclose(whole, F.linear(x, weight, bias), atol=1e-3)
    for threads in THREADS:
        torch.set_num_threads(threads)
        assert same_bits(invariant_linear(x, weight, bias), whole)
        for start, stop in ((0, 1), (7, 8), (3, 36), (20, 84), (1, 150)):
            assert same_bits(invariant_linear(x[start:stop], weight, bias), whole[start:stop])
        order = torch.randperm(150, generator=random)
        assert same_bits(invariant_linear(x[order], weight, bias), whole[order])
        assert same_bits(invariant_linear(x.view(2, 75, inner), weight, bias).flatten(0, 1), whole)
        # Where in memory a weight lies must not matter either: a gathered shard starts anywhere.
        elsewhere = torch.empty(outer * inner + 3)[3:].view(outer, inner).copy_(weight)
        assert same_bits(invariant_linear(x, elsewhere, bias), whole)


def test_an_ordinary_matrix_product_does_depend_on_its_rows() -> None:
    """The control: what the fixed shape is for."""
    x, weight = torch.randn(150, 96), torch.randn(40, 96)
    assert not all(same_bits(F.linear(x[:n], weight), F.linear(x, weight)[:n]) for n in (1, 2, 3, 5, 17))


@pytest.mark.parametrize(
    "function", [invariant_silu, torch.exp, torch.sin, torch.cos, lambda x: torch.rsqrt(x.abs() + 0.01), lambda x: x.abs().log()]
)
def test_an_element_does_not_know_where_it_stands(function) -> None:
    x = torch.randn(70001, generator=torch.Generator().manual_seed(1)) * 6
    torch.set_num_threads(1)
    whole = function(x)
    for threads in THREADS:
        torch.set_num_threads(threads)
        assert same_bits(function(x), whole)
        for start, stop in ((1, 70001), (3, 4), (5, 12), (100, 333)):
            assert same_bits(function(x[start:stop]), whole[start:stop])
        assert same_bits(function(x[::3]), whole[::3])


@pytest.mark.parametrize("width", [8, 64, 100, 1024, 3001])
def test_row_reductions_of_pytorch_do_not_know_their_neighbours(width: int) -> None:
    """RMSNorm and the final softmax are PyTorch's own; this is what they rely on."""
    x = torch.randn(300, width, generator=torch.Generator().manual_seed(width)) * 3
    functions = (lambda t: t.pow(2).mean(-1), lambda t: torch.log_softmax(t, -1), lambda t: t.sum(-1))
    for function in functions:
        torch.set_num_threads(1)
        whole = function(x)
        for threads in THREADS:
            torch.set_num_threads(threads)
            for start, stop in ((0, 300), (0, 1), (5, 7), (11, 100)):
                assert same_bits(function(x[start:stop]), whole[start:stop])
            assert same_bits(function(x.view(3, 100, width)).flatten(0, 1), whole)


@pytest.mark.parametrize(("heads", "groups", "dim"), [(4, 4, 16), (4, 2, 32), (6, 1, 24), (16, 8, 64)])
@pytest.mark.parametrize("window", [None, 50])
def test_a_query_does_not_know_what_is_beside_and_behind_it(heads: int, groups: int, dim: int, window: int | None) -> None:
    random = torch.Generator().manual_seed(heads * dim)
    length = 139
    query = torch.randn(3, heads, length, dim, generator=random)
    key, value = (torch.randn(3, groups, length, dim, generator=random) for _ in range(2))
    torch.set_num_threads(1)
    mask = causal(length, window)
    whole = invariant_attention(query, key, value, mask)
    plain = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None], enable_gqa=True)
    assert torch.allclose(whole, plain, atol=1e-5)
    for threads in THREADS:
        torch.set_num_threads(threads)
        for row, stop in ((0, 1), (1, 63), (2, 64), (0, 65), (1, 128), (2, 139)):
            alone = invariant_attention(
                query[row : row + 1, :, :stop], key[row : row + 1, :, :stop], value[row : row + 1, :, :stop], causal(stop, window)
            )
            assert same_bits(alone, whole[row : row + 1, :, :stop])
        # A decoding step: one query per row, at different places, against caches with something stale behind their last token.
        places = torch.tensor([138, 64, 17])
        for columns in (139, 144, 200):
            stale = torch.randn(2, 3, groups, columns, dim, generator=random) * 10
            for row, place in enumerate(places.tolist()):
                stale[0, row, :, : place + 1], stale[1, row, :, : place + 1] = key[row, :, : place + 1], value[row, :, : place + 1]
            back = places[:, None] - torch.arange(columns)
            seen = (back >= 0) if window is None else (back >= 0) & (back < window)
            last = query[torch.arange(3), :, places][:, :, None]
            step = invariant_attention(last, stale[0], stale[1], seen[:, None])
            assert same_bits(step[:, :, 0], whole[torch.arange(3), :, places])


def test_a_query_that_sees_nothing_is_zero() -> None:
    x = torch.randn(1, 2, 5, 8)
    assert not invariant_attention(x, x, x, torch.zeros(1, 5, 5, dtype=torch.bool)).any()


def test_gradients_are_those_of_the_ordinary_operations() -> None:
    random = torch.Generator().manual_seed(3)

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64).requires_grad_()

    assert torch.autograd.gradcheck(invariant_linear, (leaf(2, 3, 5), leaf(4, 5), leaf(4)))
    assert torch.autograd.gradcheck(lambda x, w: invariant_linear(x, w), (leaf(7, 5), leaf(4, 5)))
    assert torch.autograd.gradcheck(invariant_silu, (leaf(3, 5),))
    mask = causal(6, 4)
    states = leaf(2, 4, 6, 3), leaf(2, 2, 6, 3), leaf(2, 2, 6, 3)
    assert torch.autograd.gradcheck(lambda q, k, v: invariant_attention(q, k, v, mask, 0.3), states)
    extreme = torch.tensor([-200.0, -89.0, 0.0, 200.0], requires_grad=True)
    invariant_silu(extreme).sum().backward()
    assert extreme.grad is not None
    assert torch.allclose(extreme.grad, torch.tensor([0.0, 0.0, 0.5, 1.0]))

"""Packing tensors into buckets."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miles_core.errors import RunError
from miles_core.protocols import TensorEntry
from miles_core.weights import pack
from miles_core.weights.bucket import ALIGNMENT, views

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn)


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 9), max_size=3)), max_size=20),
    size=st.integers(1, 4000),
)
def test_any_tensors_come_out_as_they_went_in(shapes: list[tuple[torch.dtype, list[int]]], size: int) -> None:
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for i, (dtype, shape) in enumerate(shapes):
        raw = torch.randint(0, 2, (math.prod(shape) * dtype.itemsize,), generator=generator, dtype=torch.uint8)
        tensors[f"t{i}"] = raw.view(dtype).view(shape)
    out = {}
    for expected_index, bucket in enumerate(pack(tensors.items(), size)):
        assert bucket.index == expected_index
        assert bucket.entries
        assert bucket.nbytes <= size or len(bucket.entries) == 1
        assert all(entry.offset % ALIGNMENT == 0 for entry in bucket.entries)
        assert bucket.nbytes == bucket.entries[-1].offset + bucket.entries[-1].nbytes
        out.update({name: tensor.clone() for name, tensor in views(bucket.flat[: bucket.nbytes], bucket.entries)})
    assert list(out) == list(tensors)
    for name, tensor in tensors.items():
        assert out[name].dtype == tensor.dtype
        assert out[name].shape == tensor.shape
        assert torch.equal(
            out[name].view(torch.uint8) if out[name].dim() else out[name], tensor.view(torch.uint8) if tensor.dim() else tensor
        )


def test_a_tensor_larger_than_a_bucket_is_alone_even_when_it_comes_first() -> None:
    tensors = [
        ("big", torch.ones(100)),
        ("a", torch.ones(4)),
        ("b", torch.ones(4)),
        ("huge", torch.ones(200)),
        ("c", torch.ones(4)),
    ]
    assert [[e.name for e in b.entries] for b in pack(tensors, 128)] == [["big"], ["a", "b"], ["huge"], ["c"]]


def test_the_export_may_reuse_its_memory() -> None:
    memory = torch.empty(4)

    def export() -> Iterator[tuple[str, torch.Tensor]]:
        for i in range(3):
            memory.fill_(i)
            yield f"t{i}", memory

    (bucket,) = pack(export(), 1000)
    assert [tensor.tolist() for _, tensor in views(bucket.flat, bucket.entries)] == [[float(i)] * 4 for i in range(3)]


@pytest.mark.parametrize(
    "entry",
    [
        TensorEntry("w", "float32", (4,), 0, 8),
        TensorEntry("w", "float32", (4,), 8, 16),
        TensorEntry("w", "float32", (4,), -64, 16),
        TensorEntry("w", "nn", (4,), 0, 16),
    ],
)
def test_an_entry_that_contradicts_its_bytes_is_an_error(entry: TensorEntry) -> None:
    with pytest.raises(RunError, match=r"M472 .*w (is said|ends)"):
        list(views(torch.zeros(16, dtype=torch.uint8), [entry]))

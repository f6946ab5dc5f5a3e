"""Fingerprints of tensors."""

from __future__ import annotations

import torch

from miles_core.weights import digest


def test_equal_tensors_have_equal_digests_whatever_their_memory() -> None:
    base = torch.randn(6, 4)
    assert digest(base) == digest(base.clone()) == digest(base.t().contiguous().t())
    assert digest(base.bfloat16()) == digest(base.bfloat16().clone())
    assert digest(torch.nn.Parameter(base)) == digest(base)


def test_dtype_shape_and_every_byte_count() -> None:
    base = torch.zeros(4, 4)
    changed = base.clone()
    changed[3, 3] = -0.0
    others = [base.view(2, 8), base.view(torch.int32), base.half(), base.bfloat16(), changed, torch.tensor(0.0), torch.zeros(0)]
    assert len({digest(t) for t in [base, *others]}) == len(others) + 1


def test_the_digest_is_the_same_in_every_version_of_miles() -> None:
    assert digest(torch.tensor([1.0, 2.0])) == "c47c025396c0375461730e37fd1c797fce6ed3c3c94013a2955720cf15e50e55"

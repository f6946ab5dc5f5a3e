from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from miles_core.errors import RunError
from miles_core.testing import random_rows
from miles_core.training.rows import StepCount
from miles_core.training.split import split_rows


def rows_of(lengths):
    rows = random_rows(len(lengths))
    return [dataclasses.replace(row, tokens=np.zeros(length, np.int32)) for row, length in zip(rows, lengths, strict=True)]


def indices(batch, step):
    return [batch.rows[position].index for position in batch.steps[step]]


def test_ranks_take_every_other_row_of_a_step():
    batches = split_rows(random_rows(8), data_size=2, steps=2, balance=False, rollout_id=5)
    assert [[indices(batch, step) for step in range(2)] for batch in batches] == [[[0, 2], [4, 6]], [[1, 3], [5, 7]]]
    assert all(batch.rollout_id == 5 for batch in batches)


def test_counts_are_those_of_all_ranks():
    rows = random_rows(8)
    batches = split_rows(rows, data_size=2, steps=2, balance=False, rollout_id=0)
    wanted = [StepCount(4, sum(max(float(row.mask.sum()), 1.0) for row in rows[i : i + 4])) for i in (0, 4)]
    assert [list(batch.counts) for batch in batches] == [wanted, wanted]
    assert not rows[6].mask.any()  # a failed sample is among them


def test_balance_evens_tokens_within_each_step():
    lengths = [100, 200, 300, 50, 400, 150, 250, 350, 10, 20, 1000, 990]
    batches = split_rows(rows_of(lengths), data_size=2, steps=1, balance=True, rollout_id=0)
    assert [len(batch.rows) for batch in batches] == [6, 6]
    assert abs(sum(len(r.tokens) for r in batches[0].rows) - sum(len(r.tokens) for r in batches[1].rows)) <= 20
    first = split_rows(rows_of(lengths), data_size=2, steps=3, balance=True, rollout_id=0)
    assert all(set(indices(first[0], s)) | set(indices(first[1], s)) == set(range(4 * s, 4 * s + 4)) for s in range(3))


def test_balance_gives_ranks_a_row_more_at_most():
    batches = split_rows(rows_of([5, 9, 700, 3, 8, 2, 4]), data_size=3, steps=1, balance=True, rollout_id=0)
    assert sorted(len(batch.rows) for batch in batches) == [2, 2, 3]
    assert sorted(row.index for batch in batches for row in batch.rows) == list(range(7))


def test_more_ranks_than_rows_leave_a_rank_without():
    batches = split_rows(random_rows(2), data_size=3, steps=1, balance=False, rollout_id=0)
    assert [len(batch.rows) for batch in batches] == [1, 1, 0]
    assert batches[2].steps == ((),)


def test_fewer_rows_than_steps_is_an_error():
    with pytest.raises(RunError, match="M419"):
        split_rows(random_rows(2), data_size=1, steps=3, balance=False, rollout_id=0)


def test_splitting_imports_no_torch():
    code = "import sys, miles_core.training.split; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

"""Routes keyed by row, whatever the micro-batches."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
import torch

from miles_core.errors import RunError
from miles_core.testing import random_rows
from miles_core.training.batch import ModelOutputs
from miles_core.training.pack import pack
from miles_core.training.routing import Routes
from miles_core.training.split import split_rows
from miles_core.training.table import RowTable

LAYERS, TOP_K = 3, 2


def routed(rows, seed=0):
    rng = np.random.default_rng(seed)
    return [dataclasses.replace(row, routes=rng.integers(0, 8, (len(row.tokens), LAYERS, TOP_K)).astype(np.int16)) for row in rows]


def of_row(batch, place, length):
    """The routes of one row of a micro-batch, found without the code under test."""
    start = place * batch.tokens.shape[1] if batch.attention_mask is not None else int(batch.cu_seqlens[place])
    return batch.routes[start : start + length].numpy()


@pytest.mark.parametrize("layout", ["thd", "bshd"])
@pytest.mark.parametrize("multiple", [1, 8])
def test_every_row_brings_its_own_routes_to_any_micro_batch(layout, multiple):
    rows = routed(random_rows(7))
    table = RowTable(rows)
    routes = Routes.of_rollout(table)
    for members in ([0, 1, 2, 3, 4, 5, 6], [4, 1], [6], []):
        batch = routes.attach(pack(table, members, {}, layout=layout, multiple=multiple))
        assert batch.routes.shape == (batch.num_tokens, LAYERS, TOP_K)
        for place, row in enumerate(members):
            assert np.array_equal(of_row(batch, place, len(rows[row].tokens)), rows[row].routes)
        taken = sum(len(rows[row].tokens) for row in members)
        assert (batch.routes == -1).all(-1).all(-1).sum() == batch.num_tokens - taken


@pytest.mark.parametrize("layouts", [("thd", "bshd"), ("bshd", "thd")])
def test_what_one_division_records_another_replays(layouts):
    """A pass with large micro-batches records, a step with small ones in another order and layout replays."""
    rows = routed(random_rows(9))
    table = RowTable(rows)
    source = Routes.of_rollout(table)
    scored = [source.attach(pack(table, members, {}, layout=layouts[0])) for members in ([8, 0, 3, 5], [1, 2, 4, 6, 7], [])]
    found = Routes.recorded(table, scored, [ModelOutputs(routes=batch.routes) for batch in scored])
    for members in ([2, 8], [0], [7, 6, 5, 4, 3, 1]):
        batch = found.attach(pack(table, members, {}, layout=layouts[1], multiple=4))
        for place, row in enumerate(members):
            assert np.array_equal(of_row(batch, place, len(rows[row].tokens)), rows[row].routes)


def test_routes_travel_with_the_rows():
    rows = routed(random_rows(6))
    rows[2] = dataclasses.replace(rows[2], routes=None)
    for rank, sent in enumerate(split_rows(rows, data_size=2, steps=1, balance=False, rollout_id=0)):
        back = pickle.loads(pickle.dumps(sent))
        for row, wanted in zip(back.rows, rows[rank::2], strict=True):
            assert (row.routes is None) == (wanted.routes is None)
            assert row.routes is None or (row.routes.dtype == np.int16 and np.array_equal(row.routes, wanted.routes))
    (plain,) = split_rows(random_rows(3), data_size=1, steps=1, balance=False, rollout_id=0)
    assert all(row.routes is None for row in pickle.loads(pickle.dumps(plain)).rows)


def test_a_sample_without_routes_is_named():
    rows = routed(random_rows(8))
    masked = next(i for i, row in enumerate(rows) if not row.mask.any())
    rows[masked] = dataclasses.replace(rows[masked], routes=None)
    assert (Routes.of_rollout(RowTable(rows)).values[:3] >= 0).all(), "one that is not trained on needs none"
    rows[1] = dataclasses.replace(rows[1], routes=None)
    with pytest.raises(RunError, match=r"M433.*sample 1 has no routed experts"):
        Routes.of_rollout(RowTable(rows))


def test_a_rank_whose_rows_are_all_masked_replays_nothing():
    rows = [dataclasses.replace(row, mask=np.zeros_like(row.mask)) for row in random_rows(2)]
    table = RowTable(rows)
    batch = pack(table, [0, 1], {}, layout="thd")
    assert Routes.of_rollout(table).attach(batch).routes is None


def test_routes_of_other_tokens_or_layers_are_refused():
    rows = routed(random_rows(4))
    for wrong in (rows[2].routes[:-1], rows[2].routes[:, :1], rows[2].routes[..., :1]):
        with pytest.raises(RunError, match=r"M434.*sample 2 has routes"):
            Routes.of_rollout(RowTable([*rows[:2], dataclasses.replace(rows[2], routes=wrong), rows[3]]))


def test_a_backend_that_records_nothing_is_told():
    table = RowTable(random_rows(2))
    batch = pack(table, [0, 1], {}, layout="thd")
    short = torch.zeros(batch.num_tokens - 1, LAYERS, TOP_K, dtype=torch.int16)
    for outputs in (ModelOutputs(), ModelOutputs(routes=short)):
        with pytest.raises(RunError, match=r"M434.*backend recorded"):
            Routes.recorded(table, [batch], [outputs])


def test_routes_stay_in_host_memory():
    table = RowTable(routed(random_rows(2)))
    batch = Routes.of_rollout(table).attach(pack(table, [0, 1], {}, layout="thd")).to(torch.device("meta"))
    assert batch.tokens.is_meta
    assert batch.routes.device.type == "cpu"

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest
import torch

from miles_core.config import TrainingOptions
from miles_core.errors import RunError
from miles_core.testing import random_rows
from miles_core.training.pack import pack, padding_multiple
from miles_core.training.table import RowTable

ROWS = random_rows(9)


@pytest.mark.parametrize("layout", ["thd", "bshd"])
@pytest.mark.parametrize("multiple", [1, 64])
def test_every_response_token_is_predicted_by_the_one_before(layout, multiple):
    table = RowTable(ROWS)
    chosen = [4, 0, 7]
    marks = np.arange(table.response_tokens + 1, dtype=np.float32)
    batch = pack(table, chosen, {"mark": marks, "mask": table.mask}, layout=layout, multiple=multiple)
    flat, positions = batch.tokens.flatten(), batch.position_ids.flatten()
    start = 0
    for place, row in enumerate(chosen):
        tokens, response = torch.from_numpy(ROWS[row].tokens).long(), ROWS[row].response_length
        part = slice(start, start + response)
        first = batch.logit_index[start] - (len(tokens) - response - 1)
        assert batch.logit_index[part].tolist() == list(range(first + len(tokens) - response - 1, first + len(tokens) - 1))
        assert torch.equal(flat[first : first + len(tokens)], tokens)
        assert positions[first : first + len(tokens)].tolist() == list(range(len(tokens)))
        assert torch.equal(batch.targets[part], tokens[-response:])
        assert torch.equal(batch.data["mask"][part], torch.from_numpy(ROWS[row].mask))
        assert batch.data["mark"][start] == sum(r.response_length for r in ROWS[:row])
        start += response
        if layout == "thd":
            assert batch.cu_seqlens[place] == first
        else:
            assert batch.attention_mask[place].sum() == len(tokens)
            assert first == place * batch.tokens.shape[1]
    assert batch.rows == (4, 0, 7)
    assert batch.lengths == tuple(ROWS[row].response_length for row in chosen)
    assert len(batch.targets) == start
    assert batch.tokens.shape[1] % multiple == 0


def test_padding_of_a_packed_row_is_one_more_segment():
    table = RowTable(ROWS)
    total = int(table.lengths[:3].sum())
    batch = pack(table, (0, 1, 2), {}, layout="thd", multiple=64)
    assert batch.cu_seqlens.tolist()[-2:] == [total, 64]
    assert batch.position_ids[0, total:].tolist() == list(range(64 - total))
    assert batch.max_seqlen == max(64 - total, int(table.lengths[:3].max()))
    assert pack(table, (0, 1, 2), {}, layout="thd").cu_seqlens[-1] == total


def test_a_micro_batch_of_no_rows_trains_on_nothing():
    table = RowTable(ROWS)
    for layout in ("thd", "bshd"):
        batch = pack(table, (), {"mask": table.mask}, layout=layout)
        assert (batch.rows, batch.lengths, batch.data["mask"].tolist()) == ((-1,), (1,), [0])
        assert pack(RowTable(()), (), {"mask": np.zeros(1, np.float32)}, layout=layout).num_tokens == 2


def test_hundreds_of_samples_pack_in_about_a_millisecond():
    table = RowTable(random_rows(512))
    fields = dict.fromkeys(("mask", "weight", "advantages", "returns", "old_log_probs"), table.mask)
    seconds = []
    for _ in range(7):
        started = time.perf_counter()
        pack(table, range(512), fields, layout="thd")
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.005


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"response_length": 0, "mask": np.zeros(0, np.float32)}, "no response token"),
        ({"tokens": ROWS[0].tokens[-ROWS[0].response_length :]}, "no prompt token"),
        ({"mask": np.ones(ROWS[0].response_length + 1, np.float32)}, "its mask has"),
        ({"rollout_log_probs": np.zeros(ROWS[0].response_length + 2, np.float32)}, "rollout log-probs for"),
    ],
)
def test_malformed_rows_are_named(changes, why):
    with pytest.raises(RunError, match=f"M417 .*sample 0 .*{why}"):
        RowTable([dataclasses.replace(ROWS[0], **changes)])


def test_rows_are_padded_on_accelerators_alone():
    options = TrainingOptions(data_pad_size_multiplier=64)
    assert padding_multiple(options, torch.device("cuda")) == 64
    assert padding_multiple(options, torch.device("cpu")) == 1

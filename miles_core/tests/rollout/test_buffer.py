"""Samples as plain data and back, and a buffer that loses nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest

from miles_core.errors import RunError, UsageError
from miles_core.rollout.buffer import GroupBuffer, pop_first
from miles_core.rollout.codec import decode_sample, encode_sample
from miles_core.samples import Invalid, Sample, Scored, Status, Timeout


def again(sample: Sample) -> Sample:
    return decode_sample(json.loads(json.dumps(encode_sample(sample))))


@pytest.mark.parametrize("score", [None, Scored(0.5), Scored({"acc": 1.0, "note": "x"}, "fine"), Invalid("no"), Timeout(3.0, "s")])
def test_a_sample_survives(score) -> None:
    sample = Sample(
        index=7,
        group_index=2,
        prompt=[{"role": "user", "content": "é\ud800"}],
        prompt_ids=[1, 2**40],
        response_ids=[3, 4, 5],
        response="a\n",
        label={"x": [1, None]},
        metadata={"deep": {"list": [1.5, "x"]}},
        loss_mask=[0, 1, 1],
        rollout_log_probs=[float(np.float32(-0.1)), -1e-30, -0.0],
        weight_versions=[(1, 2), (4, 1)],
        status=Status.ABORTED,
        score=score,
        reward=0.25,
        removed=True,
    )
    assert again(sample) == sample
    assert again(Sample()) == Sample()


def test_arrays_survive() -> None:
    routes = np.arange(12, dtype=np.int16).reshape(3, 2, 2)
    found = again(Sample(routed_experts=routes)).routed_experts
    assert found is not None
    assert found.dtype == routes.dtype
    assert np.array_equal(found, routes)


@pytest.mark.parametrize(
    ("name", "value"), [("metadata", {"x": {1, 2}}), ("label", object()), ("loss_mask", [0.5]), ("response_ids", ["a"])]
)
def test_what_is_no_plain_data_is_named(name: str, value: object) -> None:
    sample = Sample(index=3)
    setattr(sample, name, value)
    with pytest.raises(RunError, match="M408") as caught:
        GroupBuffer(groups=[[sample]]).state()
    assert f"sample 3 cannot be saved: its {name}" in caught.value.line()


def test_taking_is_first_in_first_out() -> None:
    groups = [[Sample(index=i)] for i in range(5)]
    assert pop_first(groups, 2) == [[Sample(index=0)], [Sample(index=1)]]
    buffer = GroupBuffer(groups=groups)
    assert [group[0].index for group in buffer.take(0, 9)] == [2, 3, 4]
    assert (len(buffer), buffer.take(0, 3)) == (0, [])


def test_what_is_out_is_in_the_state_until_the_rollout_ends() -> None:
    buffer = GroupBuffer(groups=[[Sample(index=i)] for i in range(3)])
    (taken,) = buffer.take(0, 1)
    taken[0].response_ids.append(5)
    assert [decode_sample(group[0]).index for group in buffer.state()] == [0, 1, 2]
    # A rollout that is cut short begins anew, from what it began with.
    assert decode_sample(buffer.state()[0][0]).response_ids == []
    buffer.settle()
    assert [decode_sample(group[0]).index for group in buffer.state()] == [1, 2]


def test_groups_of_another_size_are_refused() -> None:
    state = GroupBuffer(groups=[[Sample(), Sample()]]).state()
    with pytest.raises(UsageError, match="M409") as caught:
        GroupBuffer().load_state(state, 4)
    assert "--n-samples-per-prompt 2" in caught.value.fix

"""Reward exact."""

from __future__ import annotations

import asyncio
import time

import pytest

from miles_core.options import Config
from miles_core.samples import Invalid, Sample, Scored, Status
from miles_rewards.exact import create, strip


@pytest.mark.parametrize(
    ("response", "label", "expected"),
    [
        ("01357", "01357", 1.0),
        ("01357<|im_end|>", "01357", 1.0),
        (" 01357 \n<|im_end|>\n", "01357", 1.0),
        ("<s> 01357</s>", "01357", 1.0),
        ("01357<|im_end|><|endoftext|>", " 01357 ", 1.0),
        ("7", 7, 1.0),
        ("1357", "01357", 0.0),
        ("01357 01357", "01357", 0.0),
        ("", "01357", 0.0),
        ("<|im_end|>", "", 1.0),
        ("a < b", "a < b", 1.0),
    ],
)
def test_the_whole_response_must_be_the_label(response: str, label: object, expected: float) -> None:
    sample = Sample(response=response, label=label, status=Status.COMPLETED)
    assert asyncio.run(create(Config([])).score([sample])) == [Scored(expected)]


@pytest.mark.parametrize("status", [Status.TRUNCATED, Status.ABORTED])
def test_a_response_that_did_not_end_is_wrong(status: Status) -> None:
    (score,) = asyncio.run(create(Config([])).score([Sample(response="7", label="7", status=status)]))
    assert score == Scored(0.0, f"the response is {status}")


@pytest.mark.parametrize("label", [None, [7], {"a": 7}])
def test_without_a_label_there_is_no_score(label: object) -> None:
    (score,) = asyncio.run(create(Config([])).score([Sample(response="7", label=label, status=Status.COMPLETED)]))
    assert isinstance(score, Invalid)


def test_stripping_takes_linear_time() -> None:
    for text in (" " * 300_000 + "x" + " " * 300_000, "<|" * 100_000, "<s>" * 10_000, "x" + "<|a|>" * 5_000 + "y"):
        began = time.perf_counter()
        strip(text)
        assert time.perf_counter() - began < 15

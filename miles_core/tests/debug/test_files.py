"""Rollouts and training data in files."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from miles_core.debug.archive import write_archive
from miles_core.debug.rollout_file import read_rollout, write_rollout
from miles_core.debug.train_file import read_training, write_training
from miles_core.errors import RunError
from miles_core.samples import Invalid, Sample, Scored, Status, Timeout
from miles_core.testing.random_rows import random_rows
from miles_core.training.split import split_rows
from miles_core.training.table import RowTable


def samples() -> list[Sample]:
    first = Sample(
        index=4,
        group_index=2,
        prompt=[{"role": "user", "content": "1 + 1 = \ud83d"}],
        prompt_ids=[1, 2, 151_000],
        response_ids=[7, 8, 9],
        response="Zw\u00f6lf \U0001f600",
        label={"answer": 2},
        metadata={"difficulty": 0.1, "tags": ["a", None]},
        loss_mask=[1, 0, 1],
        rollout_log_probs=[-0.1, -1e-300, -3.3333333333333335],
        weight_versions=[(3, 2), (4, 1)],
        routed_experts=np.arange(20, dtype=np.int16).reshape(5, 2, 2),
        status=Status.COMPLETED,
        score=Scored({"acc": 1.0, "fmt": 0.5}, "right"),
        reward=1.0,
        teacher_log_probs=[-0.25, -0.5, -1 / 3],
    )
    second = Sample(index=5, group_index=2, status=Status.FAILED, score=Invalid("no label"), removed=True)
    third = Sample(index=6, group_index=3, prompt="?", response_ids=[5], status=Status.TRUNCATED, score=Timeout(1.5))
    return [first, second, third]


def test_a_rollout_comes_back_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "3.dump"
    write_rollout(path, 3, samples(), {"rollout/raw_reward": 0.5})
    saved = read_rollout(path)
    assert (saved.rollout_id, saved.metrics) == (3, {"rollout/raw_reward": 0.5})
    assert saved.samples == samples()
    routes = [sample.routed_experts for sample in saved.samples]
    assert routes[1:] == [None, None]
    np.testing.assert_array_equal(routes[0], samples()[0].routed_experts)
    assert routes[0].dtype == np.int16
    assert [path.name for path in path.parent.iterdir()] == ["3.dump"], "no partial file is left"


def test_a_rollout_without_samples(tmp_path: Path) -> None:
    write_rollout(tmp_path / "0.npz", 0, [])
    assert read_rollout(tmp_path / "0.npz").samples == []


def test_any_tool_reads_the_file(tmp_path: Path) -> None:
    write_rollout(tmp_path / "0.npz", 0, samples())
    with zipfile.ZipFile(tmp_path / "0.npz") as archive:
        assert {"document.npy", "response_ids.npy", "response_ids_lengths.npy"} <= set(archive.namelist())
    with np.load(tmp_path / "0.npz", allow_pickle=False) as arrays:
        assert arrays["response_ids"].tolist() == [7, 8, 9, 5]
        assert arrays["loss_mask_lengths"].tolist() == [3, -1, -1]
        document = json.loads(arrays["document"].tobytes().decode("utf-8", "surrogatepass"))
    assert [each["status"] for each in document["samples"]] == ["completed", "failed", "truncated"]


class Trap:
    """Tells when it is unpickled."""

    sprung: ClassVar[list[int]] = []

    def __reduce__(self) -> tuple[object, ...]:
        return Trap.sprung.append, (1,)


@pytest.mark.parametrize("kind", ["missing", "pickle", "pickled array", "other", "cut", "lengths", "folder"])
def test_what_cannot_be_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "0.npz"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Trap()))
    elif kind == "pickled array":
        with path.open("wb") as file:
            np.savez(file, document=np.array([Trap()], object))
    elif kind == "other":
        write_archive(path, "training data", {}, {})
    elif kind == "cut":
        write_rollout(path, 0, samples())
        path.write_bytes(path.read_bytes()[:-300])
    elif kind == "lengths":
        write_rollout(path, 0, samples())
        with np.load(path) as stored:
            arrays = dict(stored)
        arrays["response_ids"] = arrays["response_ids"][:-1]
        np.savez(path, **arrays)
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(RunError) as caught:
        read_rollout(path)
    assert caught.value.code == "M372"
    assert str(path) in str(caught.value)
    assert not Trap.sprung


def test_plain_data_only(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="metadata is no plain data"):
        write_rollout(tmp_path / "0.npz", 0, [Sample(metadata={"x": object()})])
    assert not list(tmp_path.iterdir())


def test_training_data_come_back_whole(tmp_path: Path) -> None:
    rows = random_rows(6, seed=1)
    batch = split_rows(rows, data_size=2, steps=1, balance=False, rollout_id=9)[1]
    table = RowTable(batch.rows)
    advantages = np.random.default_rng(0).normal(size=len(table.mask)).astype(np.float32)
    write_training(tmp_path / "9_1.npz", 1, batch, {"mask": table.mask, "advantages": advantages})
    saved = read_training(tmp_path / "9_1.npz")
    assert (saved.rank, saved.batch.rollout_id, saved.batch.steps, saved.batch.counts) == (1, 9, batch.steps, batch.counts)
    for mine, theirs in zip(batch.rows, saved.batch.rows, strict=True):
        assert (mine.index, mine.reward, mine.response_length) == (theirs.index, theirs.reward, theirs.response_length)
        np.testing.assert_array_equal(mine.tokens, theirs.tokens)
    np.testing.assert_array_equal(saved.fields["advantages"], advantages[:-1])
    np.testing.assert_array_equal(saved.of_row("mask", 1), batch.rows[1].mask)

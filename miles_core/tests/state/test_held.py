"""Files that are held in memory until they are written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from miles_core.state import StateFiles, host_copy
from miles_core.state.store import StateStore


def give(files: StateFiles, folder: Path, weight: torch.Tensor) -> None:
    files.tensors(folder / "weights.safetensors", [("a", weight), ("b", weight.t())])
    files.pickle(folder / "random.pt", {"cpu": torch.arange(4)})
    files.text(folder / "facts.json", '{"é": 1}\n')


def test_held_files_are_those_that_are_written_at_once(tmp_path: Path) -> None:
    at_once, held = tmp_path / "at-once", tmp_path / "held"
    at_once.mkdir()
    held.mkdir()
    weight = torch.arange(6.0).view(2, 3)
    give(StateFiles(), at_once, weight)
    files = StateFiles(hold=True)
    give(files, held, weight)
    weight.zero_()
    assert not list(held.iterdir())
    files.write()
    names = sorted(path.name for path in at_once.iterdir())
    assert names == ["facts.json", "random.pt", "weights.safetensors"] == sorted(path.name for path in held.iterdir())
    for name in names:
        assert (at_once / name).read_bytes() == (held / name).read_bytes()
    assert torch.equal(load_file(held / "weights.safetensors")["b"], torch.arange(6.0).view(2, 3).t())
    (held / "facts.json").unlink()
    files.write()
    assert not (held / "facts.json").exists(), "what was written is let go of"


def test_a_copy_shares_nothing_with_its_tensor() -> None:
    tensor = torch.ones(3, requires_grad=True)
    copy = host_copy(tensor)
    tensor.data.zero_()
    assert copy.tolist() == [1.0, 1.0, 1.0]
    assert not copy.requires_grad


def test_a_write_that_fails_says_so(tmp_path: Path) -> None:
    files = StateFiles(hold=True)
    files.text(tmp_path / "gone" / "facts.json", "{}")
    with pytest.raises(FileNotFoundError):
        files.write()


def test_what_is_abandoned_is_removed_and_the_state_before_it_stays(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    store.begin(1)
    store.commit(1, {})
    building = store.begin(2)
    (building / "half").write_text("")
    store.abandon()
    store.abandon()
    assert not building.exists()
    state = store.latest()
    assert state is not None
    assert state.rollout_id == 1
    assert state.passed_over == ()

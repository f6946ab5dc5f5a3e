"""Saving run states, and what is left after crashes."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from miles_core import version
from miles_core.errors import RunError, UsageError
from miles_core.state import SavedState, StateStore, model_fingerprint

FORK = multiprocessing.get_context("fork")
CRASHED = 9
FAULTS = ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir", "open")


def save(store: StateStore, rollout_id: int, keep: int | None = None, content: str = "") -> Path:
    """A state of three files in two folders, each of which names the rollout."""
    folder = store.begin(rollout_id)
    (folder / "trainer").mkdir()
    for name in ("trainer/.metadata", "trainer/rank-0.bin", "rollout.json"):
        (folder / name).write_text(f"{name} of {rollout_id} {content}" * 50, encoding="utf-8")
    return store.commit(rollout_id, {"model_fingerprint": "f", "weight_version": rollout_id + 1}, keep=keep)


def save_once(folder: Path, *args: Any, **kwargs: Any) -> None:
    """Save as a process of its own would: open, save, end."""
    store = StateStore(folder)
    save(store, *args, **kwargs)
    store.close()


def assert_whole(state: SavedState | None, content: str = "") -> int:
    """Every file of a state is as saved; returns its rollout."""
    assert state is not None
    for name in ("trainer/.metadata", "trainer/rank-0.bin", "rollout.json"):
        assert (state.path / name).read_text(encoding="utf-8") == f"{name} of {state.rollout_id} {content}" * 50
    assert state.meta["weight_version"] == state.rollout_id + 1
    return state.rollout_id


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_a_state_comes_back_with_what_describes_it(tmp_path: Path) -> None:
    store = StateStore(tmp_path / "new" / "folder")
    assert store.latest() is None
    path = save(store, 4)
    state = StateStore(store.directory).latest()
    assert assert_whole(state) == 4
    assert state.path == path == store.directory / "step_0000004"
    assert state.meta["miles_version"] == version.__version__
    assert state.meta["rollout_id"] == 4
    assert state.passed_over == ()
    assert (store.directory / "latest").read_text(encoding="utf-8") == "step_0000004\n"


def test_only_the_last_ones_are_kept(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    for rollout_id in range(5):
        save(store, rollout_id, keep=2)
    assert names(tmp_path) == ["latest", "step_0000003", "step_0000004"]
    save(store, 5, keep=1)
    assert names(tmp_path) == ["latest", "step_0000005"]
    save(store, 6)
    save(store, 7)
    assert names(tmp_path) == ["latest", "step_0000005", "step_0000006", "step_0000007"]


def test_going_on_from_an_older_state_makes_that_branch_the_newest(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    for rollout_id in (1, 3, 5):
        save(store, rollout_id)
    save(store, 2, keep=2)
    assert names(tmp_path) == ["latest", "step_0000002", "step_0000005"]
    assert assert_whole(store.latest()) == 2
    (tmp_path / "latest").unlink()
    assert assert_whole(store.latest()) == 2


def test_saving_the_same_rollout_again_replaces_it(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    save(store, 1, content="old")
    save(store, 1, content="new")
    assert_whole(store.latest(), "new")
    assert names(tmp_path) == ["latest", "step_0000001"]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: (path / "meta.json").unlink(), "FileNotFoundError"),
        (lambda path: (path / "meta.json").write_text("{", encoding="utf-8"), "JSONDecodeError"),
        (lambda path: (path / "meta.json").write_text("[]", encoding="utf-8"), "not of format"),
        (lambda path: (path / "trainer" / "rank-0.bin").unlink(), "FileNotFoundError"),
        (lambda path: (path / "trainer" / "rank-0.bin").write_text("x", encoding="utf-8"), "rank-0.bin has not the"),
        (shutil.rmtree, None),
    ],
)
def test_a_damaged_state_is_passed_over_and_said_so(damage: Callable[[Path], Any], reason: str | None, tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    save(store, 1)
    damage(save(store, 2))
    state = store.latest()
    assert assert_whole(state) == 1
    assert [reason in why for why in state.passed_over] == ([True] if reason else [])


def test_a_wrong_pointer_does_not_matter(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    save(store, 1)
    save(store, 2)
    for pointer in ("step_0000099\n", "../elsewhere", ""):
        (tmp_path / "latest").write_text(pointer, encoding="utf-8")
        assert assert_whole(store.latest()) == 2
    (tmp_path / "latest").write_text("step_0000001\n", encoding="utf-8")
    assert assert_whole(store.latest()) == 1


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "step_by_step").mkdir()
    store = StateStore(tmp_path)
    save(store, 1, keep=1)
    save(store, 2, keep=1)
    assert names(tmp_path) == ["latest", "notes.txt", "step_0000002", "step_by_step"]


def _loop(folder: Path, pipe: Connection) -> None:
    store = StateStore(folder)
    last = store.latest()
    rollout_id = 0 if last is None else last.rollout_id + 1
    pipe.send("ready")
    while True:
        save(store, rollout_id, keep=2)
        rollout_id += 1


def test_killed_at_random_moments_the_last_good_state_is_always_there(tmp_path: Path) -> None:
    rng = random.Random(0)
    newest = -1
    for _ in range(30):
        ours, theirs = FORK.Pipe()
        process = FORK.Process(target=_loop, args=(tmp_path, theirs))
        process.start()
        assert ours.poll(10)
        # Not a wait for anything: the moment of the kill is random on purpose.
        process.join(rng.uniform(0, 0.03))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        state = StateStore(tmp_path).latest()
        if state is not None:
            assert assert_whole(state) >= newest
            newest = state.rollout_id
    assert newest > 5
    store = StateStore(tmp_path)
    save(store, newest + 1, keep=2)
    assert len(names(tmp_path)) == 3, "debris of the crashes is gone"


def _fault(at: int, act: Callable[[], None]) -> Callable[[], int]:
    """From now on the ``at``-th system call of :data:`FAULTS` calls ``act`` first; returns a counter of calls."""
    count = 0

    def wrap(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == at:
                act()
            return real(*args, **kwargs)

        return call

    for name in FAULTS:
        setattr(os, name, wrap(getattr(os, name)))
    return lambda: count


def _save_with_fault(folder: Path, rollout_id: int, at: int, pipe: Connection, error: int | None) -> None:
    store = StateStore(folder)

    def act() -> None:
        if error is None:
            os._exit(CRASHED)
        raise OSError(error, os.strerror(error))

    calls = _fault(at, act)
    try:
        save(store, rollout_id, keep=2, content="new")
        pipe.send(("saved", calls()))
    except RunError as problem:
        pipe.send((problem.code, calls()))
    except OSError:
        pipe.send(("writer", calls()))


@pytest.mark.parametrize("error", [None, errno.ENOSPC], ids=["crash", "disk full"])
@pytest.mark.parametrize("rollout_id", [3, 2], ids=["next", "same again"])
def test_a_crash_or_an_error_at_any_system_call_leaves_the_old_state_or_the_new_one(
    rollout_id: int, error: int | None, tmp_path: Path
) -> None:
    at = 0
    outcomes = []
    while not outcomes or outcomes[-1] != "finished":
        at += 1
        folder = tmp_path / str(at)
        for old in (0, 1, 2):
            save_once(folder, old, content="old")
        ours, theirs = FORK.Pipe()
        process = FORK.Process(target=_save_with_fault, args=(folder, rollout_id, at, theirs, error))
        process.start()
        process.join(20)
        if process.exitcode == CRASHED:
            outcome = "crashed"
        else:
            assert ours.poll(20)
            code, calls = ours.recv()
            outcome = "finished" if code == "saved" and calls < at else code
        outcomes.append(outcome)
        state = StateStore(folder).latest()
        assert state is not None
        is_new = "new" in (state.path / "rollout.json").read_text(encoding="utf-8")
        assert_whole(state, "new" if is_new else "old")
        assert state.rollout_id == (rollout_id if is_new else 2)
        if outcome in ("saved", "finished"):
            assert is_new
        # Whatever happened, the next save works and cleans up.
        save_once(folder, 7, keep=1)
        assert names(folder) == ["latest", "step_0000007"]
    assert len(outcomes) > 15
    assert set(outcomes[:-1]) <= ({"crashed"} if error is None else {"M460", "writer", "saved"})


def test_a_folder_without_permission_is_one_line(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("", encoding="utf-8")
    with pytest.raises(RunError, match=r"M462 .*cannot begin to save .*step_0000001.*File exists|Not a directory"):
        StateStore(blocked).begin(1)
    if os.getuid() != 0:
        tmp_path.chmod(0o500)
        with pytest.raises(RunError, match=r"M461 .*Permission denied"):
            StateStore(tmp_path / "sub").begin(1)
        tmp_path.chmod(0o700)


def test_two_runs_do_not_save_into_one_folder(tmp_path: Path) -> None:
    first = StateStore(tmp_path)
    save(first, 1)
    with pytest.raises(RunError, match=r"M463 .*another run saves into"):
        StateStore(tmp_path).begin(2)
    assert assert_whole(StateStore(tmp_path).latest()) == 1
    first.close()
    save(StateStore(tmp_path), 2)


def test_saves_out_of_order_are_refused(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    with pytest.raises(RunError, match="M464"):
        store.commit(1, {})
    store.begin(1)
    with pytest.raises(RunError, match="M464"):
        store.commit(2, {})
    store.begin(1)
    with pytest.raises(ValueError, match="cannot keep 0"):
        store.commit(1, {}, keep=0)


def test_a_state_belongs_to_a_model(tmp_path: Path) -> None:
    checkpoint = tmp_path / "model"
    checkpoint.mkdir()
    with pytest.raises(UsageError, match=r"M465 .*config.json"):
        model_fingerprint(checkpoint)
    (checkpoint / "config.json").write_text(json.dumps({"hidden_size": 4}), encoding="utf-8")
    store = StateStore(tmp_path / "state")
    store.begin(0)
    store.commit(0, {"model_fingerprint": model_fingerprint(checkpoint)})
    state = store.latest()
    state.check_model(checkpoint)
    (checkpoint / "config.json").write_text(json.dumps({"hidden_size": 8}), encoding="utf-8")
    with pytest.raises(UsageError, match=r"M466 .*of another model"):
        state.check_model(checkpoint)

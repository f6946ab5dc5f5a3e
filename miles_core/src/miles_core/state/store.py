"""Run states in a folder: one complete state per saved rollout, and always a last good one.

A state is built in a folder of another name, synced to disk, and renamed. ``latest`` names the newest; where it is missing or
wrong, the newest complete state counts. A crash at any moment leaves either the old state or the new one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miles_core.errors import RunError, UsageError
from miles_core.state.files import remove, sync_folder, sync_tree, write_whole
from miles_core.version import __version__

OWNER = f"miles-core {__version__}"
FORMAT = 1
META = "meta.json"
POINTER = "latest"
LOCK = ".lock"
_STATE = re.compile(r"step_(\d{7,})(?:\.replaced)?")
_REPLACED = re.compile(r"(step_\d{7,})\.replaced")
_BUILDING = re.compile(r"step_\d{7,}\.tmp-\d+")


@dataclass(frozen=True)
class SavedState:
    """A complete run state.

    Attributes:
        path: its folder.
        rollout_id: the rollout that it had finished.
        meta: what was given to :meth:`StateStore.commit`, and ``miles_version``, ``saved_at`` (seconds since 1970), ``serial``
            (number of the save in this folder), ``format``, ``files`` (sizes in bytes by relative path).
        passed_over: newer states that are not complete, with the reason each.
    """

    path: Path
    rollout_id: int
    meta: Mapping[str, Any]
    passed_over: tuple[str, ...] = ()

    def check_model(self, checkpoint: Path) -> None:
        """Refuse a state of another model than ``checkpoint``.

        Raises:
            UsageError: the fingerprints differ (M466), or ``checkpoint`` has no readable config (M465).
        """
        if self.meta.get("model_fingerprint") != model_fingerprint(checkpoint):
            raise UsageError(
                "M466",
                f"the run state {self.path} is of another model than {checkpoint}",
                owner=OWNER,
                why="their config.json differ",
                fix="give the --hf-checkpoint that the run was started with, or another --load",
                path=str(self.path),
            )


def model_fingerprint(checkpoint: Path) -> str:
    """SHA-256 of the checkpoint's ``config.json``, in hexadecimal.

    Raises:
        UsageError: it cannot be read (M465).
    """
    path = checkpoint / "config.json"
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        why = error.strerror or str(error)
        raise UsageError(
            "M465", f"cannot read {path}", owner=OWNER, why=why, fix="check --hf-checkpoint", path=str(path)
        ) from error


class StateStore:
    """The run states in ``directory``. Only one run may save into it at a time; reading is free.

    Raises (each method that writes):
        RunError: the disk is full (M460), there is no permission (M461), another input or output error (M462), another run saves
            here (M463), or a save is out of order (M464).
    """

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)
        self._lock: int | None = None
        self._building: Path | None = None

    def begin(self, rollout_id: int) -> Path:
        """An empty folder for the state of ``rollout_id``; fill it, then :meth:`commit`. Debris of crashed saves is removed."""
        if rollout_id < 0:
            raise ValueError(f"there is no rollout {rollout_id}")
        building = self.directory / f"step_{rollout_id:07d}.tmp-{os.getpid()}"
        with self._failing("begin to save", building):
            self.directory.mkdir(parents=True, exist_ok=True)
            self._acquire()
            self._clean()
            building.mkdir()
        self._building = building
        return building

    def commit(self, rollout_id: int, meta: Mapping[str, Any], *, keep: int | None = None) -> Path:
        """Make what was written since :meth:`begin` the newest state; returns its folder.

        Args:
            meta: JSON values to store with it: ``model_fingerprint``, plugins, counters.
            keep: how many states to keep, this one included; None keeps all.
        """
        if keep is not None and keep < 1:
            raise ValueError(f"cannot keep {keep} states")
        building, self._building = self._building, None
        if building is None or building.name.split(".")[0] != f"step_{rollout_id:07d}":
            raise RunError(
                "M464", f"rollout {rollout_id} is committed but not begun", owner=OWNER, fix="call begin of the same rollout first"
            )
        final = self.directory / f"step_{rollout_id:07d}"
        with self._failing("save", final, building):
            known = {
                "rollout_id": rollout_id,
                "miles_version": __version__,
                "saved_at": time.time(),
                "serial": 1 + max((state.meta["serial"] for state in self._states()), default=0),
                "format": FORMAT,
            }
            files = sync_tree(building)
            write_whole(building / META, json.dumps({**meta, **known, "files": files}, indent=2, sort_keys=True) + "\n")
            replaced = None
            if final.exists():
                # A folder cannot be replaced at once. Between the two renames the old state counts under its other name.
                replaced = self.directory / f"{final.name}.replaced"
                remove(replaced)
                os.rename(final, replaced)
            os.rename(building, final)
            sync_folder(self.directory)
            write_whole(self.directory / POINTER, final.name + "\n")
        # The new state is safe; what follows only frees space.
        with self._failing("remove old states from", self.directory):
            if replaced is not None:
                self._remove_state(replaced)
            if keep is not None:
                for state in self._states()[keep:]:
                    self._remove_state(state.path)
        return final

    def abandon(self) -> None:
        """Remove what was begun and not committed, where that can be done; nothing may write into it any more."""
        building, self._building = self._building, None
        if building is not None:
            with contextlib.suppress(OSError):
                remove(building)

    def latest(self) -> SavedState | None:
        """The state to resume from: the one that ``latest`` names if it is complete, else the newest complete one, else None."""
        passed_over: list[str] = []
        states = self._states(passed_over)
        with contextlib.suppress(OSError):
            named = (self.directory / POINTER).read_text(encoding="utf-8").strip()
            states.sort(key=lambda state: state.path.name != named)
        if not states:
            return None
        best = states[0]
        return SavedState(best.path, best.rollout_id, best.meta, tuple(passed_over))

    def close(self) -> None:
        """Let another run save here."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _states(self, passed_over: list[str] | None = None) -> list[SavedState]:
        """Every complete state, newest save first."""
        states: list[SavedState] = []
        for path in sorted(self.directory.glob("step_*")):
            match = _STATE.fullmatch(path.name)
            if match is None:
                continue
            state = _read(path, int(match[1]))
            if isinstance(state, SavedState):
                states.append(state)
            elif passed_over is not None:
                passed_over.append(f"{path}: {state}")
        return sorted(states, key=lambda state: int(state.meta["serial"]), reverse=True)

    def _remove_state(self, path: Path) -> None:
        # Half of a removed state must not look like one.
        debris = path.with_name(f"{path.name.split('.')[0]}.tmp-{os.getpid()}")
        os.rename(path, debris)
        remove(debris)

    def _clean(self) -> None:
        for path in sorted(self.directory.iterdir()):
            replaced = _REPLACED.fullmatch(path.name)
            if replaced and not (self.directory / replaced[1]).exists():
                os.rename(path, self.directory / replaced[1])
            elif replaced or _BUILDING.fullmatch(path.name) or path.name.startswith(f".{POINTER}."):
                remove(path)

    def _acquire(self) -> None:
        """Take the folder's lock, which the system drops when this process ends, however it does."""
        if self._lock is not None:
            return
        fd = os.open(self.directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(fd)
            raise RunError(
                "M463",
                f"another run saves into {self.directory}",
                owner=OWNER,
                fix="give every run a --save of its own",
                path=str(self.directory),
            ) from error
        except OSError:
            # A file system without locks: nothing protects from a second run there, and one run is safe.
            os.close(fd)
            return
        self._lock = fd

    @contextlib.contextmanager
    def _failing(self, doing: str, path: Path, building: Path | None = None) -> Iterator[None]:
        """Turn system errors into one line; a failed save leaves no debris where that can be helped."""
        try:
            yield
        except OSError as error:
            if building is not None:
                with contextlib.suppress(OSError):
                    remove(building)
            code, fix = "M462", "check the file system; the last good state is untouched"
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                code, fix = "M460", "free space, or keep fewer states with --save-total-limit; the last good state is untouched"
            elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                code, fix = "M461", "make the folder writable, or choose another --save"
            why = error.strerror or str(error)
            raise RunError(code, f"cannot {doing} {path}", owner=OWNER, why=why, fix=fix, path=str(path)) from error


def _read(path: Path, rollout_id: int) -> SavedState | str:
    """The state in a folder, or why it is not complete."""
    try:
        meta = json.loads((path / META).read_text(encoding="utf-8"))
        if not isinstance(meta, dict) or meta.get("format") != FORMAT:
            return f"{META} is not of format {FORMAT}"
        if meta["rollout_id"] != rollout_id or not isinstance(meta["serial"], int):
            return f"{META} is of another rollout"
        for name, size in meta["files"].items():
            if (path / name).stat().st_size != size:
                return f"{name} has not the {size} bytes that were saved"
    except (OSError, ValueError, LookupError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return SavedState(path, rollout_id, meta)

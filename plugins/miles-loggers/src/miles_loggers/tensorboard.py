"""The logger ``tensorboard``: one folder of event files for each run."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miles_core.loggers.axes import axis_of
from miles_loggers.options import TensorboardOptions

if TYPE_CHECKING:
    from miles_core.options import Config

VARIABLE = "TENSORBOARD_DIR"
BASE = "tensorboard_log"
OWNER = "miles-run.txt"
"""In the folder: the run folder that it belongs to."""
EVENTS = "events.out.tfevents.*"


class TensorboardLogger:
    """Scalars as event files, without PyTorch and TensorFlow. The step of a metric is that of its axis.

    The folder is ``$TENSORBOARD_DIR[/PROJECT]/EXPERIMENT``, else ``tensorboard_log/PROJECT/EXPERIMENT``, else ``tensorboard`` in
    the run folder. One that belongs to another run is left alone: this one gets the next free name, ``EXPERIMENT-2``. When a run
    resumes, what it makes again is taken out of the event files first.
    """

    def __init__(self, config: Config) -> None:
        self._options = config.get(TensorboardOptions)
        self._writer: Any = None

    def start(self, run_dir: str, settings: Mapping[str, object], first: Mapping[str, int]) -> None:
        """Choose the folder and open an event file."""
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        folder = self._claim(Path(run_dir))
        for path in sorted(folder.glob(EVENTS)):
            _cut(path, first)
        self._writer = EventFileWriter(str(folder))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Write the metrics, to disk when this returns."""
        if self._writer is None:
            return
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=float(value)) for name, value in metrics.items()]
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _claim(self, run_dir: Path) -> Path:
        project, experiment = self._options.tb_project_name, self._options.tb_experiment_name or run_dir.name
        base = os.environ.get(VARIABLE)
        if base is None and project is None:
            wanted = run_dir / "tensorboard"
        else:
            wanted = Path(base or BASE, project or "", experiment).expanduser()
        folder, number = wanted, 1
        while not _claimed(folder, run_dir):
            number += 1
            folder = wanted.with_name(f"{wanted.name}-{number}")
        return folder


def _claimed(folder: Path, run_dir: Path) -> bool:
    """Make the folder the run's, unless it is another's."""
    folder.mkdir(parents=True, exist_ok=True)
    mark = str(run_dir.absolute())
    try:
        with (folder / OWNER).open("x", encoding="utf-8") as file:
            file.write(mark)
    except FileExistsError:
        return (folder / OWNER).read_text(encoding="utf-8") == mark
    if any(folder.glob(EVENTS)):
        # Somebody else's event files, which nobody marked.
        (folder / OWNER).unlink()
        return False
    return True


def _cut(path: Path, first: Mapping[str, int]) -> None:
    """Take out of an event file every value from ``first`` of its axis on."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    kept, dropped = [], False
    for raw in RawEventFileLoader(str(path)).Load():
        event = Event.FromString(raw)
        values = [value for value in event.summary.value if event.step < first[axis_of(value.tag)]]
        if len(values) < len(event.summary.value):
            dropped = True
            del event.summary.value[:]
            event.summary.value.extend(values)
        if values or not event.HasField("summary"):
            kept.append(event.SerializeToString())
    if not dropped:
        return
    # TensorBoard reads what is called like an event file only.
    building = path.with_name(f".cut-{os.getpid()}")
    with building.open("wb") as file:
        writer = RecordWriter(file)
        for raw in kept:
            writer.write(raw)
    os.replace(building, path)

"""What a remote or append-only logger has been told already, kept in the run folder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Logged:
    """The run's id at the logger, and the last step logged on each axis.

    A logger that cannot take back what it was told skips the steps that a resumed run makes again.
    """

    path: Path
    run_id: str = ""
    last: dict[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Logged:
        """What is in the file; an empty one when it is missing or broken."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return cls(path, str(found["run_id"]), {str(axis): int(step) for axis, step in found["last"].items()})
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return cls(path)

    def is_new(self, axis: str, step: int) -> bool:
        """Whether the axis has not come so far."""
        return step > self.last.get(axis, -1)

    def advance(self, steps: Mapping[str, int]) -> None:
        """Remember steps, on disk too."""
        for axis, step in steps.items():
            self.last[axis] = max(step, self.last.get(axis, -1))
        self.write()

    def write(self) -> None:
        """Replace the file at once."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        building = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        building.write_text(json.dumps({"run_id": self.run_id, "last": self.last}), encoding="utf-8")
        os.replace(building, self.path)

"""Reading a server's weights back: dtypes and digests that its own processes write to a file."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from miles_core.errors import RunError
from miles_sglang import payload
from miles_sglang.command import REPORTER
from miles_sglang.control import Control

OWNER = "miles-sglang"
SECONDS = 120.0


class Readback:
    """A folder of one server's own, with the file that :func:`miles_sglang.inside.report` writes."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="miles-sglang-"))
        self.file = self.folder / "weights.json"

    def ask(self, control: Control, what: str, ranks: int) -> dict[str, tuple[str, str]]:
        """Dtype and digest of each parameter.

        Args:
            what: ``digests``, or ``dtypes`` for them alone.
            ranks: of the server.

        Raises:
            RunError: M522, there is no report.
        """
        self.file.unlink(missing_ok=True)
        # One for each rank; the text says what is wanted, and goes with no tensor that matters.
        content = [payload.encode([(what, _Nothing())])] * ranks
        document = {"serialized_named_tensors": content, "load_format": REPORTER, "flush_cache": False}
        control.post("/update_weights_from_tensor", document, SECONDS)
        try:
            found = json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            fix = "see the server's log"
            raise RunError("M522", "the server wrote no report of its weights", owner=OWNER, why=str(error), fix=fix) from error
        return {name: (str(dtype), str(digest)) for name, (dtype, digest) in found.items()}

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


class _Nothing:
    """Unpickles as an empty tensor on the CPU."""

    def __reduce__(self) -> tuple[Any, ...]:
        import torch

        return torch.Tensor, ()

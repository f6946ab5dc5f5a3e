"""Arrays and a JSON document in one file: NumPy's ``.npz``, without anything pickled."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from miles_core.debug.paths import whole_file
from miles_core.errors import RunError

DOCUMENT = "document"
VERSION = 1


def write_archive(path: Path, kind: str, document: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write ``arrays`` by name, and ``document`` as UTF-8 JSON in the uint8 array ``document``.

    Args:
        kind: what the file is; read with the same word.
    """
    text = json.dumps({"kind": kind, "version": VERSION, **document}, ensure_ascii=False)
    encoded = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
    with whole_file(path) as file:
        np.savez(file, **{DOCUMENT: encoded}, **arrays)  # type: ignore[arg-type]


def read_archive(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What :func:`write_archive` was given.

    Raises:
        RunError: the file is not there, cannot be read, or is something else (M372).
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        document = json.loads(arrays.pop(DOCUMENT).tobytes().decode("utf-8", "surrogatepass"))
    except (OSError, ValueError, KeyError, AttributeError, EOFError, TypeError, zipfile.BadZipFile) as error:
        why = "there is no such file" if isinstance(error, FileNotFoundError) else f"{type(error).__name__}: {error}"
        raise unreadable(path, kind, why) from error
    if not isinstance(document, dict) or document.get("kind") != kind or document.get("version") != VERSION:
        said = f"{document.get('kind')!r} of version {document.get('version')}" if isinstance(document, dict) else "something else"
        raise unreadable(path, kind, f"it is {said}")
    return document, arrays


def unreadable(path: Path, kind: str, why: str) -> RunError:
    """The error M372."""
    return RunError(
        "M372",
        f"no {kind} can be read from {path}",
        owner="miles-core",
        why=why,
        fix="give a file that a run of this version wrote; nothing pickled (.pt) is read",
        path=str(path),
    )

"""Files that are whole or not there, whenever the machine stops."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Replace the content of ``path`` at once, and have it on disk on return."""
    building = path.with_name(f".{path.name}.{os.getpid()}")
    with building.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(building, path)
    sync_folder(path.parent)


def sync_tree(folder: Path) -> dict[str, int]:
    """Have every file and folder below ``folder`` on disk; returns the sizes of the files by relative path, in bytes."""
    sizes = {}
    for parent, _, names in os.walk(folder):
        for name in sorted(names):
            path = Path(parent, name)
            with path.open("rb") as file:
                os.fsync(file.fileno())
                sizes[str(path.relative_to(folder))] = os.fstat(file.fileno()).st_size
        sync_folder(Path(parent))
    return sizes


def sync_file(path: Path) -> None:
    """Have a file's content on disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Have the names in ``folder`` on disk."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it; fine when it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

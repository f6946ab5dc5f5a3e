"""``python -m miles_sglang.snapshot [SERVER_ARGS.PY VERSION]`` writes the packaged file of arguments.

Without arguments those of the installed SGLang are taken.
"""

from __future__ import annotations

import sys
from pathlib import Path

from miles_sglang.arguments import SNAPSHOT, dump, installed_source, read_source


def main(arguments: list[str]) -> int:
    """Write the file; returns the exit code."""
    version, source = (arguments[1], Path(arguments[0])) if len(arguments) == 2 else installed_source()
    if version is None or source is None:
        sys.stderr.write("SGLang is not installed: give the path of its server_args.py and its version\n")
        return 2
    entries = read_source(source.read_text(encoding="utf-8"))
    SNAPSHOT.write_text(dump(version, entries), encoding="utf-8")
    sys.stdout.write(f"{len(entries)} arguments of SGLang {version} in {SNAPSHOT}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

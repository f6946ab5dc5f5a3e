"""The process of one test: ``python -I program_process.py FOLDER TOLD REPORT``, the last two being descriptors.

Reads JSON from TOLD, puts up the walls, writes a space to REPORT, runs the program, and for tests that need it writes JSON behind.
Imports nothing of the package: a program may use any name.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import types
from typing import Any


def main(folder: str, told_descriptor: int, report_descriptor: int) -> None:
    """Run the test that is told of."""
    with os.fdopen(told_descriptor, "rb") as pipe:
        told: dict[str, Any] = json.loads(pipe.read())
    containment = _load(os.path.join(os.path.dirname(os.path.abspath(__file__)), "containment.py"))

    def report(**fields: Any) -> None:
        with os.fdopen(report_descriptor, "wb") as pipe:
            pipe.write(json.dumps(fields).encode("ascii"))

    containment.limit(told["memory"], told["seconds"])
    missing = containment.seal(folder, told["readable"])
    kind = told["kind"]
    if kind == "probe" or (missing and not told["unsandboxed"]):
        report(missing=missing)
        return
    os.write(report_descriptor, b" ")
    sys.argv = ["program.py"]
    # A program that is tested from outside is a module: what it does only as a script is not wanted then.
    module = types.ModuleType("__main__" if kind == "stdin" else "program")
    sys.modules[module.__name__] = module
    names = module.__dict__
    exec(compile(told["program"], "program.py", "exec"), names)
    if kind == "call":
        function = names.get(told["call"])
        if function is None and isinstance(names.get("Solution"), type):
            function = getattr(names["Solution"](), told["call"], None)
        if function is None:
            raise NameError(f"there is no function {told['call']}")
        report(returned=function(*told["arguments"]))
    elif kind == "source":
        exec(compile(told["source"], "test.py", "exec"), names)
        report(passed=told["secret"])


def _load(path: str) -> Any:
    spec = importlib.util.spec_from_file_location("miles_containment", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

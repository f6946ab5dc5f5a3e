"""Everything that a developer runs: ``nox -s quickstart``, ``nox -s tests``, ``nox -s lint``."""

from __future__ import annotations

from pathlib import Path

import nox

nox.options.sessions = ["lint", "tests"]
nox.options.reuse_existing_virtualenvs = True

PACKAGES = [
    "miles_core[run]",
    "plugins/miles-algos",
    "plugins/miles-rewards",
    "plugins/miles-fsdp",
    "plugins/miles-transformers",
    "plugins/miles-loggers",
]
CLUSTER_PACKAGES = ["plugins/miles-megatron", "plugins/miles-sglang"]
"""Packages for machines with GPUs; their tests run without."""
TYPED = (
    "miles_core",
    "miles_algos",
    "miles_rewards",
    "miles_fsdp",
    "miles_transformers",
    "miles_loggers",
    "miles_megatron",
    "miles_sglang",
)
"""Whose types are checked."""
CONSTRAINTS = ["-c", "constraints.txt"]


def install(session: nox.Session, *more: str) -> None:
    """Install the packages of this checkout, editable, with the pinned CPU build of PyTorch."""
    # Bytecode is written on first import: compiling all of PyTorch at installation takes longer than the quickstart's start.
    session.env["PIP_NO_COMPILE"] = "1"
    session.env["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    session.install(*CONSTRAINTS, "torch")
    session.install(*CONSTRAINTS, *(part for package in PACKAGES for part in ("-e", package)), *more)


@nox.session
def quickstart(session: nox.Session) -> None:
    """Set up, train a tiny model on this machine, and show what it learned."""
    install(session)
    session.run("python", "examples/quickstart/run.py", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """All tests, from units to a run with two training ranks."""
    editable = [part for package in (*CLUSTER_PACKAGES, "examples/miles-example-reward") for part in ("-e", package)]
    install(session, "-r", "requirements-test.txt", *editable)
    if session.posargs:
        session.run("python", "-m", "pytest", *session.posargs)
        return
    # Two at a time, as most of an end-to-end test is the start of its processes, which wait for one another.
    session.run("python", "-m", "pytest", "-n", "2", "--dist", "loadfile", "miles_core/tests", "plugins", "examples")
    session.run("python", "-m", "pytest", "-n", "2", "--dist", "worksteal", "tests")


@nox.session
def lint(session: nox.Session) -> None:
    """Style and strict types."""
    tested = Path(".nox/tests/bin/python").absolute()
    if tested.exists():
        # What the packages need is there: the tools alone are quick to install.
        tools = [line for line in Path("requirements-test.txt").read_text("utf-8").split() if line.startswith(("mypy", "ruff"))]
        session.install(*CONSTRAINTS, *tools)
    else:
        install(session, "-r", "requirements-test.txt", *(part for package in CLUSTER_PACKAGES for part in ("-e", package)))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    packages = [part for package in TYPED for part in ("-p", package)]
    session.run("mypy", *(["--python-executable", str(tested)] if tested.exists() else []), *packages)


@nox.session
def benchmarks(session: nox.Session) -> None:
    """CPU benchmarks; writes to benchmarks/results."""
    install(session)
    session.run("python", "benchmarks/run.py", *session.posargs)

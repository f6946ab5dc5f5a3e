"""Everything that a developer runs: ``nox -s quickstart``, ``nox -s tests``, ``nox -s lint``."""

from __future__ import annotations

import nox

nox.options.sessions = ["lint", "tests"]
nox.options.reuse_existing_virtualenvs = True

PACKAGES = [
    "miles_core[run]",
    "plugins/miles-algos",
    "plugins/miles-rewards",
    "plugins/miles-fsdp",
    "plugins/miles-megatron",
    "plugins/miles-transformers",
    "plugins/miles-sglang",
    "plugins/miles-loggers",
]
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
    install(session, "-r", "requirements-test.txt", "-e", "examples/miles-example-reward")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style and types; types are strict in core."""
    install(session, "-r", "requirements-test.txt")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy", "-p", "miles_core")


@nox.session
def benchmarks(session: nox.Session) -> None:
    """CPU benchmarks; writes to benchmarks/results."""
    install(session)
    session.run("python", "benchmarks/run.py", *session.posargs)

"""Which router a run has, and what is said of options that no router reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from miles_core.cli.dry_run import describe
from miles_core.options.export import config_yaml, lock

ONE = ("--rollout-num-gpus 1",)
TWO = ("--rollout-num-gpus 2",)
OWN = "miles_core.router.service:RouterService"
THEIRS = "toy.router:make"
HOOK = """
async def trace(request, call_next):
    return await call_next(request)

def short(request):
    return request
"""


@pytest.mark.parametrize(
    ("changes", "router", "middlewares"),
    [
        (ONE, None, []),
        (TWO, OWN, []),
        ((*TWO, "--engine fronted"), THEIRS, []),
        ((*ONE, "--engine fronted"), None, []),
        ((*ONE, "--use-miles-router"), OWN, ["radix_tree"]),
        ((*TWO, "--engine fronted", "--use-miles-router"), OWN, ["radix_tree"]),
        ((*TWO, "--engine fronted", "--miles-router-middleware-paths trace"), OWN, ["trace"]),
        ((*ONE, "--use-miles-router", "--miles-router-middleware-paths trace radix_tree"), OWN, ["radix_tree", "trace"]),
        (("--loss-type imitate",), None, []),
    ],
)
def test_which_router_a_run_has(cli, changes: tuple[str, ...], router: str | None, middlewares: list[str]) -> None:
    planned = cli.plan(_arguments(cli, changes))
    plugins = planned.require().plugins
    assert (plugins.router and plugins.router.create) == router
    assert [ref.name for ref in plugins.middlewares] == middlewares
    assert ("1 router (" in describe(planned)) == (router is not None)
    locked = {(entry["kind"], entry["name"]) for entry in lock(planned.require())["plugins"]}
    assert {("middleware", name) for name in middlewares} <= locked


def test_a_function_is_a_middleware(cli, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(HOOK)
    plan = cli.plan(_arguments(cli, (*ONE, f"--miles-router-middleware-paths {file}:trace"))).require()
    assert [(ref.kind, ref.adapter) for ref in plan.plugins.middlewares] == [("middleware", "middleware")]
    (line,) = cli.errors(_arguments(cli, (*ONE, f"--miles-router-middleware-paths {file}:short")))
    assert line.startswith("M111 --miles-router-middleware-paths")
    assert "fn(request, call_next)" in line
    (line,) = cli.errors(_arguments(cli, (*ONE, "--miles-router-middleware-paths tracee")))
    assert line.startswith("M101")
    assert "trace" in line.partition("Do:")[2]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("--miles-router-max-connections 0", "--miles-router-max-connections 0 (argument"),
        ("--miles-router-health-check-failure-threshold 0", "give 1 or more"),
        ("--miles-router-timeout 0", "above 0"),
    ],
)
def test_numbers_out_of_range(cli, change: str, said: str) -> None:
    (line,) = cli.errors(_arguments(cli, (*TWO, change)))
    assert line.startswith("M247")
    assert said in line


def test_a_key_comes_from_the_environment(cli, tmp_path: Path) -> None:
    (line,) = cli.errors(_arguments(cli, (*TWO, "--miles-router-api-key s3cret")))
    assert line.startswith("M248")
    assert "s3cret" not in line
    arguments = _arguments(cli, TWO)
    planned = cli.plan(arguments, MILES_MILES_ROUTER_API_KEY="s3cret")
    assert planned.errors == []
    assert "s3cret" not in config_yaml(planned.config) + describe(planned)
    (line,) = cli.errors(arguments, MILES_MILES_ROUTER_API_KEY="with space")
    assert line.startswith("M248 ")
    assert "with space" not in line


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ((*ONE, "--miles-router-policy least-loaded"), "one engine needs no router"),
        ((*TWO, "--engine fronted", "--miles-router-timeout 5"), "engine fronted brings a router of its own"),
        (("--use-miles-router", "--loss-type imitate"), "the run has no engine"),
    ],
)
def test_options_that_no_router_reads_are_named(cli, changes: tuple[str, ...], why: str) -> None:
    warnings = [line for line in cli.plan(_arguments(cli, changes)).warnings if "router" in line.partition(" ")[0]]
    assert len(warnings) == 1
    assert why in warnings[0]


def test_options_that_a_router_reads_are_not(cli) -> None:
    arguments = _arguments(cli, (*TWO, "--miles-router-policy least-loaded", "--miles-router-max-connections 9"))
    assert not [line for line in cli.plan(arguments).warnings if "router" in line]


def _arguments(cli, changes: tuple[str, ...]) -> list[str]:
    """The valid run, not colocated, with changes; a change may have several values."""
    arguments = cli.but("--engine toy", drop=["--colocate"])
    for change in changes:
        flag, *values = change.split(" ")
        if flag in arguments:
            at = arguments.index(flag)
            del arguments[at : at + 2]
        arguments += [flag, *values]
    return arguments

"""Really installed plugin packages, good and hostile, in a folder of their own."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

GOOD = '''
    from dataclasses import dataclass

    from miles_core.options import option
    from miles_core.plugins import hookimpl
    from miles_core.plugins import (
        AdvantageRecord, AlgorithmRecord, BackendRecord, CommandRecord, EngineRecord, FilterRecord, LoggerRecord, LossRecord,
        MiddlewareRecord, RewardRecord,
    )


    @dataclass(frozen=True)
    class AcmeOptions:
        """Acme"""

        rate: float = option(0.5, help="How much.")
        token: str | None = option(None, flag="--acme-token", secret=True, help="A key.")


    def offer(kind):
        return [kind("acme", "acme_good.work:make", options=AcmeOptions, summary="the best", capabilities=frozenset({"cpu"}))]


    @hookimpl
    def miles_backend(): return offer(BackendRecord)
    @hookimpl
    def miles_engine(): return offer(EngineRecord)
    @hookimpl
    def miles_advantage(): return offer(AdvantageRecord)
    @hookimpl
    def miles_loss(): return offer(LossRecord)
    @hookimpl
    def miles_reward(): return [*offer(RewardRecord), RewardRecord("late", "acme_good.nowhere:make"),
                                RewardRecord("crash", "acme_good.work:crash"), RewardRecord("text", "acme_good.work:text")]
    @hookimpl
    def miles_filter(): return offer(FilterRecord)
    @hookimpl
    def miles_middleware(): return offer(MiddlewareRecord)
    @hookimpl
    def miles_logger(): yield from offer(LoggerRecord)
    @hookimpl
    def miles_algo(): return [AlgorithmRecord("acme", advantage="acme", loss="acme", defaults={"lr": 1e-5})]
    @hookimpl
    def miles_command(): return [CommandRecord("acme-greet", "acme_good.command:greet")]
    @hookimpl
    def miles_configure(event): event.error(ValueError("checked by acme"))
'''
WORK = """
    from acme_good.plugin import AcmeOptions
    text = "not a factory"
    def make(config): return ("made", config.get(AcmeOptions).rate)
    def crash(config): raise ZeroDivisionError("in the factory")
"""
COMMAND = """
    import click
    @click.command()
    @click.argument("who")
    def greet(who): click.echo(f"hello {who}")
"""
REWARD = """
    from miles_core.plugins import RewardRecord, hookimpl
    @hookimpl
    def miles_reward(): return [RewardRecord({name!r}, "nowhere:make")]
"""
OBSERVER = """
    from miles_core.plugins import hookimpl
    SEEN = []
    @hookimpl
    def miles_run_start(event): SEEN.append(event)
    @hookimpl
    def miles_train_end(event): SEEN.append(event)
"""
FAILING = """
    from miles_core.plugins import hookimpl
    @hookimpl
    def miles_train_end(event): raise ValueError("observer is ill")
    @hookimpl
    def miles_configure(event): raise ValueError("observer is ill")
    @hookimpl
    def miles_run_end(event): raise ValueError("ill to the end")
"""
SAYS = "from miles_core.plugins import RewardRecord, hookimpl\n@hookimpl\ndef miles_reward(): "
HOOK = "from miles_core.plugins import hookimpl\n"

KINDS = ("backend", "engine", "advantage", "loss", "reward", "filter", "middleware", "logger", "algo")
Files = dict[str, str]
Points = dict[str, dict[str, str]]

PACKAGES: dict[str, tuple[str, str, Points, Files]] = {
    "acme-good": (
        "1.0",
        "miles-core>=0.1,<1",
        {
            **{f"miles.{kind}": {"acme": "acme_good.plugin"} for kind in KINDS if kind != "reward"},
            "miles.reward": dict.fromkeys(("acme", "late", "crash", "text"), "acme_good.plugin"),
            "miles.commands": {"acme-greet": "acme_good.plugin"},
            "miles.hooks": {"acme-watch": "acme_good.observer", "acme-ill": "acme_good.failing"},
        },
        {"plugin": GOOD, "work": WORK, "command": COMMAND, "observer": OBSERVER, "failing": FAILING},
    ),
    "acme-twin": ("2.0", "miles-core", {"miles.reward": {"acme": "acme_twin.plugin"}}, {"plugin": REWARD.format(name="acme")}),
    "acme-future": ("3.0", "miles-core>=2", {"miles.reward": {"future": "acme_future.plugin"}}, {"plugin": "raise SystemExit(9)"}),
    "acme-misspelt": (
        "1.1",
        "miles-core",
        {"miles.rewards": {"lost": "acme_misspelt.plugin"}},
        {"plugin": REWARD.format(name="lost")},
    ),
    "acme-hostile": (
        "6.6",
        "miles-core",
        {
            "miles.loss": {
                "slow": "acme_hostile.slow",
                "exits": "acme_hostile.exits",
                "dies": "acme_hostile.dies",
                "interrupts": "acme_hostile.interrupts",
                "missing": "acme_hostile.missing",
                "syntax": "acme_hostile.syntax",
                "noattr": "acme_hostile.quiet:nothing",
                "badvalue": "not a module!",
                "heavy": "acme_hostile.heavy",
                "raises": "acme_hostile.raises",
                "lingers": "acme_hostile.lingers",
            },
            "miles.commands": {"acme-exit": "acme_hostile.exits"},
        },
        {
            "slow": "import time\ntime.sleep(60)",
            "exits": "import sys\nprint('noise')\nsys.exit(0)",
            "dies": "import os\nos._exit(3)",
            "interrupts": "raise KeyboardInterrupt",
            "missing": "import surely_not_installed",
            "syntax": "def broken(:",
            "quiet": "",
            "heavy": "import torch\n" + HOOK + "from miles_core.plugins import LossRecord\n@hookimpl\n"
            "def miles_loss(): return [LossRecord('heavy', 'acme_hostile.quiet:x')]",
            "lingers": HOOK + "import threading\nfrom miles_core.plugins import LossRecord\n"
            "threading.Thread(target=threading.Event().wait).start()\n"
            "@hookimpl\ndef miles_loss(): return [LossRecord('lingers', 'acme_hostile.quiet:x')]",
            "raises": HOOK + "@hookimpl\ndef miles_loss(): raise OSError('no disk')",
        },
    ),
    "acme-hooks": (
        "1.0",
        "miles-core",
        {
            "miles.hooks": {
                name: f"acme_hooks.{name}"
                for name in (
                    "misspelt",
                    "plain",
                    "unmarked",
                    "keyword",
                    "wrong",
                    "default",
                    "starred",
                    "coroutine",
                    "generator",
                    "wrapper",
                    "later",
                )
            }
        },
        {
            "misspelt": HOOK + "@hookimpl\ndef miles_train_ends(event): pass",
            "plain": HOOK + "def miles_run_stat(event): pass",
            "unmarked": HOOK + "def miles_run_end(event): pass",
            "keyword": HOOK + "@hookimpl\ndef miles_run_end(*, event): pass",
            "wrong": HOOK + "@hookimpl\ndef miles_run_end(evnt): pass",
            "default": HOOK + "@hookimpl\ndef miles_run_end(event=None): pass",
            "starred": HOOK + "@hookimpl\ndef miles_run_end(**more): pass",
            "coroutine": HOOK + "@hookimpl\nasync def miles_run_end(event): pass",
            "generator": HOOK + "@hookimpl\ndef miles_run_end(event): yield",
            "wrapper": HOOK + "@hookimpl(wrapper=True)\ndef miles_run_end(event): return (yield)",
            "later": HOOK
            + "@hookimpl(optionalhook=True)\ndef miles_of_later(event): pass\n@hookimpl\ndef miles_run_end(event): pass",
        },
    ),
    "acme-disagree": (
        "1.0",
        "miles-core",
        {
            "miles.reward": {
                name: f"acme_disagree.{name}" for name in ("absent", "named", "twice", "kind", "create", "options", "nothing")
            }
            | {"klass": "acme_disagree.klass:Plugin", "object": "acme_disagree.object:plugin"}
        },
        {
            "absent": HOOK + "@hookimpl\ndef miles_loss(): return []",
            "named": SAYS + "return [RewardRecord('namedd', 'a:b')]",
            "twice": SAYS + "return [RewardRecord('twice', 'a:b')] * 2",
            "kind": SAYS.replace("Reward", "Loss") + "return [LossRecord('kind', 'a:b')]",
            "create": SAYS + "return [RewardRecord('create', 'no colon')]",
            "options": SAYS + "return [RewardRecord('options', 'a:b', options=dict)]",
            "nothing": "x = 1",
            "klass": "class Plugin: pass",
            "object": "from miles_core.plugins import RewardRecord, hookimpl\nclass Plugin:\n    @hookimpl\n"
            "    def miles_reward(self): return [RewardRecord('object', 'a:b')]\nplugin = Plugin()",
        },
    ),
    "acme-dup": ("1.0", "miles-core", {"miles.filter": {"dup": "acme_dup.plugin"}}, {"plugin": ""}),
    "acme-garbled": ("1.0", "miles-core", {"miles.filter": {"garbled": "acme_garbled.plugin"}}, {"plugin": ""}),
    "acme-nameless": ("1.0", "miles-core", {"miles.filter": {"nameless": "acme_nameless.plugin"}}, {"plugin": ""}),
    "acme-closed": ("1.0", "miles-core", {"miles.filter": {"closed": "acme_closed.plugin"}}, {"plugin": ""}),
}

BLOCKER = """
import sys

BLOCKED = ("torch", "ray", "transformers", "aiohttp", "numpy", "rich")

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} must not be imported here")

sys.meta_path.insert(0, Blocker())
"""


def _write(folder: Path, name: str) -> None:
    version, requires, points, files = PACKAGES[name]
    package = name.replace("-", "_")
    lines = ["[build-system]", 'requires = ["hatchling"]', 'build-backend = "hatchling.build"', "[project]"]
    lines += [f'name = "{name}"', f'version = "{version}"', f'dependencies = ["{requires}"]']
    for group, entries in points.items():
        lines += [f'[project.entry-points."{group}"]', *(f'{key} = "{value}"' for key, value in entries.items())]
    home = folder / "src" / package
    home.mkdir(parents=True)
    (folder / "pyproject.toml").write_text("\n".join([*lines, "[tool.hatch.build.targets.wheel]", f'packages = ["src/{package}"]']))
    (home / "__init__.py").touch()
    for module, text in files.items():
        (home / f"{module}.py").write_text(textwrap.dedent(text))


def _damage(site: Path) -> None:
    """What interrupted upgrades and full disks leave behind."""
    shutil.copytree(site / "acme_dup-1.0.dist-info", site / "acme_dup-0.9.dist-info")
    (site / "acme_garbled-1.0.dist-info" / "entry_points.txt").write_bytes(b"[miles.filter]\ngarbled = \xff\xfe")
    (site / "acme_nameless-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.3\nName: acme-nameless\n")
    points = site / "acme_closed-1.0.dist-info" / "entry_points.txt"
    points.unlink()
    points.mkdir()


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip installed every package above, some then damaged."""
    projects, target = tmp_path_factory.mktemp("projects"), tmp_path_factory.mktemp("site")
    for name in PACKAGES:
        _write(projects / name, name)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--no-compile", "--disable-pip-version-check", "-q"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(target), *(str(projects / n) for n in PACKAGES)]
    subprocess.run(command, check=True, timeout=240)
    _damage(target)
    return target


@pytest.fixture(scope="session")
def blocker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that, on PYTHONPATH, makes importing torch, ray, transformers and their like fail."""
    folder = tmp_path_factory.mktemp("blocker")
    (folder / "sitecustomize.py").write_text(BLOCKER)
    return folder


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def miles(site: Path, blocker: Path, tmp_path: Path) -> Run:
    """``miles(*args)`` in a process that sees the packages above and cannot import anything heavy."""

    def run(*args: str, env: dict[str, str] | None = None, python: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(blocker), str(site), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        clean = {key: value for key, value in os.environ.items() if not key.startswith("MILES_")}
        command = [sys.executable, "-P", *(python or ("-m", "miles_core.cli.main")), *args]
        return subprocess.run(
            command, env=clean | {"PYTHONPATH": path} | (env or {}), cwd=tmp_path, capture_output=True, text=True, timeout=120
        )

    return run


@pytest.fixture
def on_path(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The packages above on this process's path, and forgotten afterwards."""
    monkeypatch.syspath_prepend(str(site))
    importlib.invalidate_caches()
    before = set(sys.modules)
    yield site
    for name in set(sys.modules) - before:
        if name.partition(".")[0].startswith("acme"):
            del sys.modules[name]

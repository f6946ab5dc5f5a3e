"""Every hook: its documentation, its example, and a test with its name."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from pathlib import Path

import pytest

from miles_core.config import TrainingOptions
from miles_core.errors import RunError
from miles_core.options import Config
from miles_core.plugins import PluginHost, PluginIndex, events
from miles_core.plugins.checks import specifications
from miles_core.plugins.host import EVENTS, RECORDS, provider
from miles_core.plugins.metadata import Row

PAGE = Path(__file__).parents[3] / "docs" / "hooks.md"


def entries():
    """Signature and example of every hook on the page, by name."""
    parts = re.split(r"^## (miles_\w+)$", PAGE.read_text(), flags=re.MULTILINE)
    return {
        name: re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) for name, text in zip(parts[1::2], parts[2::2], strict=True)
    }


@pytest.fixture
def example(tmp_path, monkeypatch):
    """``example(hook, kind)``: a host that loaded the page's example of a hook as a plugin named ``mine``, and its module."""

    def load(hook, kind="hooks"):
        (tmp_path / f"example_{hook}.py").write_text(entries()[hook][1])
        monkeypatch.syspath_prepend(str(tmp_path))
        host = PluginHost(PluginIndex([Row(f"miles.{kind}", "mine", f"example_{hook}", "my-package", "1.0", "wheel", (), "")]))
        loaded = host.load(kind, "mine")
        return host, sys.modules[f"example_{hook}"], loaded

    yield load
    for name in [name for name in sys.modules if name.startswith("example_miles_")]:
        del sys.modules[name]


def test_every_hook_is_documented_with_its_signature():
    documented = entries()
    specs = specifications()
    assert list(documented) == list(specs)
    for name, spec in specs.items():
        assert documented[name][0].strip() == f"def {name}{inspect.signature(spec)}".replace("'", "")
        assert len(documented[name]) == 2, f"{name} needs one example"
        assert spec.__doc__


def test_every_hook_has_a_test_with_its_name():
    tests = {node.name for node in ast.parse(Path(__file__).read_text()).body if isinstance(node, ast.FunctionDef)}
    assert {f"test_{name}" for name in specifications()} <= tests


def test_every_hook_is_a_provider_or_takes_an_event():
    assert {*map(provider, RECORDS), *EVENTS.values()} == set(specifications())


def offered(example, kind):
    _, _, loaded = example(provider(kind), kind)
    assert isinstance(loaded.record, RECORDS[kind])
    assert loaded.record.name == loaded.ref.name == "mine"
    return loaded


def test_miles_backend(example):
    assert offered(example, "backend").ref.capabilities == {"cpu"}


def test_miles_engine(example):
    assert "shared_file" in offered(example, "engine").ref.capabilities


def test_miles_advantage(example):
    assert offered(example, "advantage").options[0]().baseline == 0.0


def test_miles_loss(example):
    assert offered(example, "loss").record.summary == "Squared surprise"


def test_miles_reward(example):
    assert offered(example, "reward").ref.create == "my_package.reward:create"


def test_miles_filter(example):
    assert offered(example, "filter").options == ()


def test_miles_middleware(example):
    assert offered(example, "middleware").ref.kind == "middleware"


def test_miles_logger(example):
    assert offered(example, "logger").ref.version == "1.0"


def test_miles_algo(example):
    assert offered(example, "algo").record.filters == ("nonzero_std",)


def test_miles_command(example):
    assert offered(example, "commands").ref.create == "my_package.command:main"


def test_miles_configure(example):
    host, _, _ = example("miles_configure")
    errors = []
    host.broadcast(events.Configure(Config.of(TrainingOptions(lr=0.1)), errors.append))
    assert errors == []
    host.broadcast(events.Configure(Config.of(TrainingOptions(lr=2.0)), errors.append))
    assert [error.code for error in errors] == ["X001"]


def test_miles_run_start(example, tmp_path):
    host, _, _ = example("miles_run_start")
    host.broadcast(events.RunStart(Config.of(), tmp_path, 7, None))
    assert (tmp_path / "note.txt").read_text() == "7 rollouts to go"


def test_miles_rollout_end(example):
    host, module, _ = example("miles_rollout_end")
    host.broadcast(events.RolloutEnd(0, {"rollout/reward": 0.5}))
    assert module.rewards == [0.5]


def test_miles_train_end(example):
    host, _, _ = example("miles_train_end")
    host.broadcast(events.TrainEnd(0, {"train/loss": 1.0}))
    with pytest.raises(RunError, match=r"M106 my-package 1.0: .*the loss of rollout 1 has exploded"):
        host.broadcast(events.TrainEnd(1, {"train/loss": 1e9}))


def test_miles_weights_published(example):
    host, module, _ = example("miles_weights_published")
    host.broadcast(events.WeightsPublished(0, 1, 0.5, 10))
    host.broadcast(events.WeightsPublished(1, 2, 0.25, 10))
    assert module.slowest == 0.5


def test_miles_eval_end(example):
    host, module, _ = example("miles_eval_end")
    host.broadcast(events.EvalEnd(0, {"eval/a": 0.5}))
    host.broadcast(events.EvalEnd(1, {"eval/a": 0.25}))
    assert module.best == {"eval/a": 0.5}


def test_miles_checkpoint_saved(example, tmp_path):
    host, _, _ = example("miles_checkpoint_saved")
    host.broadcast(events.CheckpointSaved(3, tmp_path / "rollout_3"))
    assert (tmp_path / "newest.txt").read_text() == "rollout_3"


def test_miles_run_end(example, tmp_path):
    host, _, _ = example("miles_run_end")
    host.broadcast(events.RunEnd(tmp_path, 4, None))
    assert (tmp_path / "outcome.txt").read_text() == "ended well after 4 rollouts"

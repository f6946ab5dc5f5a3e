"""A distribution of toy plugins, a tiny checkpoint and prompt files, for resolving and planning real command lines in process."""

from __future__ import annotations

import json
import struct
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from miles_core.options.resolve import Resolved, resolve
from miles_core.plugins import PluginIndex
from miles_core.plugins.metadata import Row
from miles_core.runtime.checks.placement import Machine
from miles_core.runtime.planning import Planned, plan_run

PLUGIN = '''
    from dataclasses import dataclass

    from miles_core.config import TrainingOptions
    from miles_core.errors import UsageError
    from miles_core.options import option
    from miles_core.plugins import (
        AdvantageRecord, AlgorithmRecord, BackendRecord, EngineRecord, FilterRecord, LoggerRecord, LossRecord, MiddlewareRecord,
        RewardRecord, hookimpl,
    )


    @dataclass(frozen=True)
    class BackendOptions:
        """Toy backend"""

        offload: bool | None = option(None, help="Three states.")
        context_parallel_size: int = option(1, flag="--context-parallel-size", help="Ranks on the same rows.")
        width: int = option(3, help="How wide.")
        modes: list[int] = option([], help="Numbers.")
        table: dict[str, int] = option({}, help="A mapping.")
        key: str | None = option(None, secret=True, help="A key.")
        pin: int | None = option(None, secret=True, help="A number nobody may see.")


    @dataclass(frozen=True)
    class EngineOptions:
        """Toy engine"""

        slots: int = option(4, help="Slots.")


    @dataclass(frozen=True)
    class EstimatorOptions:
        """Toy estimator"""

        scale: float = option(1.0, help="Scale.")


    @dataclass(frozen=True)
    class PenaltyOptions:
        """Toy penalty"""

        use: bool = option(False, flag="--use-penalty", help="Switch.")


    @dataclass(frozen=True)
    class RegressOptions:
        """Toy regression"""

        bound: float = option(1.0, help="Bound.")


    @dataclass(frozen=True)
    class ThiefOptions:
        """Thief"""

        rate: float = option(0.1, flag="--lr", help="Not its own flag.")


    BOTH = frozenset({"cpu", "cuda"})

    @hookimpl
    def miles_backend():
        return [
            BackendRecord("toy", "toy.work:make", options=BackendOptions, capabilities=BOTH | {"critic"}),
            BackendRecord("gpu-only", "toy.work:make", capabilities=frozenset({"cuda"})),
            BackendRecord("thief", "toy.work:make", options=ThiefOptions, capabilities=BOTH),
            BackendRecord("routed", "toy.work:make", capabilities=BOTH | {"routing_replay"}),
            BackendRecord("exact", "toy.work:make", capabilities=BOTH | {"true_on_policy"}),
        ]
    @hookimpl
    def miles_engine():
        return [
            EngineRecord("toy", "toy.work:make", options=EngineOptions, capabilities=BOTH),
            EngineRecord("routed", "toy.work:make", capabilities=BOTH | {"routed_experts"}),
            EngineRecord("exact", "toy.work:make", capabilities=BOTH | {"true_on_policy"}),
            EngineRecord("fronted", "toy.work:make", capabilities=BOTH, router="toy.router:make"),
            EngineRecord("spanning", "toy.work:make", capabilities=BOTH | {"several_gpus", "several_nodes"}),
            EngineRecord("attaching", "toy.work:make", capabilities=frozenset({"cuda", "external"})),
        ]
    @hookimpl
    def miles_advantage():
        return [
            AdvantageRecord("mean", "toy.work:make", options=EstimatorOptions),
            AdvantageRecord("other", "toy.work:make"),
            AdvantageRecord("distil", "toy.work:make", capabilities=frozenset({"teacher", "reward_free"})),
            AdvantageRecord("valued", "toy.work:make", capabilities=frozenset({"critic"})),
            AdvantageRecord("penalty", "toy.work:make", options=PenaltyOptions, capabilities=frozenset({"teacher:--use-penalty"})),
        ]
    @hookimpl
    def miles_loss():
        return [
            LossRecord("clip", "toy.work:make"),
            LossRecord("imitate", "toy.work:make", capabilities=frozenset({"supervised"})),
            LossRecord("regress", "toy.work:make", options=RegressOptions, capabilities=frozenset({"critic"})),
        ]
    @hookimpl
    def miles_reward():
        return [RewardRecord("exact", "toy.work:make")]
    @hookimpl
    def miles_filter():
        return [FilterRecord("spread", "toy.work:make"), FilterRecord("short", "toy.work:make")]
    @hookimpl
    def miles_middleware():
        return [MiddlewareRecord("radix_tree", "toy.work:make"), MiddlewareRecord("trace", "toy.work:make")]
    @hookimpl
    def miles_logger():
        return [LoggerRecord("quiet", "toy.work:make")]
    @hookimpl
    def miles_algo():
        return [
            AlgorithmRecord("recipe", advantage="mean", loss="clip", filters=("spread", "short"), defaults={"lr": 3e-5, "seed": 7}),
            AlgorithmRecord("single", advantage="mean", loss="clip", filters=("spread",)),
            AlgorithmRecord("imitation", advantage=None, loss="imitate"),
            AlgorithmRecord("penalty", advantage="penalty", loss="clip", defaults={"use-penalty": True, "seed": 7}),
            AlgorithmRecord("sloppy", advantage="mean", loss="clip", defaults={"lrr": 1.0, "seed": "x"}),
        ]
    @hookimpl
    def miles_configure(event):
        training = event.config.get(TrainingOptions)
        if training.weight_decay == 13.0:
            event.error(UsageError("M299", "toy does not like 13", owner="toy 1.0"))
        if training.weight_decay == 12.0:
            event.warn("toy would not take 12")
        if training.weight_decay == 14.0:
            raise RuntimeError("toy breaks")
'''
NAMES = {
    "backend": ["toy", "gpu-only", "thief", "routed", "exact"],
    "engine": ["toy", "routed", "exact", "fronted", "attaching", "spanning"],
    "advantage": ["mean", "other", "valued", "distil", "penalty"],
    "loss": ["clip", "imitate", "regress"],
    "reward": ["exact"],
    "filter": ["spread", "short"],
    "middleware": ["radix_tree", "trace"],
    "logger": ["quiet"],
    "algo": ["recipe", "single", "imitation", "penalty", "sloppy"],
}


PLUGINS = (
    *("--backend", "toy", "--engine", "toy", "--advantage-estimator", "mean", "--loss-type", "clip", "--rm-type", "exact"),
    *("--logger", "quiet"),
)
RUN = (
    *("--num-rollout", "3", "--rollout-batch-size", "4", "--n-samples-per-prompt", "2", "--rollout-max-response-len", "8"),
    *("--actor-num-gpus-per-node", "2", "--colocate"),
)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PluginIndex]:
    """An index of the toy distribution, whose module can be imported, and of one that cannot."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "toy_plugin.py").write_text(textwrap.dedent(PLUGIN), encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    rows = [
        Row(f"miles.{kind}", name, "toy_plugin", "toy", "1.0", "wheel", (), str(folder))
        for kind, names in NAMES.items()
        for name in names
    ]
    rows.append(Row("miles.engine", "ghost", "no_such_module", "ghost", "2.0", "wheel", (), str(folder)))
    yield PluginIndex(rows)
    sys.modules.pop("toy_plugin", None)


@dataclass(frozen=True)
class Cli:
    """Resolves and plans command lines against the toy plugins."""

    index: PluginIndex
    checkpoint: Path
    prompts: Path
    machine: Machine = field(default_factory=lambda: Machine(cpus=8, gpus=0))

    @property
    def plugins(self) -> list[str]:
        """Arguments that name a plugin of each kind."""
        return [*PLUGINS]

    @property
    def valid(self) -> list[str]:
        """Arguments of a run without mistakes: 4 prompts x 2 samples, 2 trainers, colocated."""
        files = ("--hf-checkpoint", str(self.checkpoint), "--prompt-data", str(self.prompts), "--label-key", "label")
        return [*PLUGINS, *files, *RUN]

    def but(self, *changes: str, drop: Sequence[str] = ()) -> list[str]:
        """:attr:`valid` with flags replaced or added, and some dropped. A change is ``"--flag value"`` or ``"--flag"``."""
        groups: dict[str, list[str]] = {}
        flag = ""
        for word in [*self.valid, *(word for change in changes for word in _split(change))]:
            if word.startswith("--"):
                flag = word
                groups[flag] = []
            else:
                groups[flag].append(word)
        return [word for flag, words in groups.items() if flag not in drop for word in (flag, *words)]

    def resolve(self, arguments: Sequence[str], **environment: str) -> Resolved:
        return resolve(arguments, environment=environment, index=self.index)

    def plan(self, arguments: Sequence[str], machine: Machine | None = None, **environment: str) -> Planned:
        return plan_run(self.resolve(arguments, **environment), machine or self.machine)

    def errors(self, arguments: Sequence[str], machine: Machine | None = None, **environment: str) -> list[str]:
        """Lines of every error of a planned command line."""
        return [error.line() for error in self.plan(arguments, machine, **environment).errors]


def _split(change: str) -> list[str]:
    flag, _, value = change.partition(" ")
    return [flag, value] if value else [flag]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """An HF directory with a config, one small tensor, a tokenizer and a chat template."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "toy", "max_position_embeddings": 64}), encoding="utf-8")
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}), encoding="utf-8")
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    return folder


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """Writes a JSON Lines file; a string row is written as it is."""

    def write(*rows: object, name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def cli(index: PluginIndex, checkpoint: Path, write_rows: Callable[..., Path]) -> Cli:
    prompts = write_rows(*({"input": f"question {i}", "label": str(i)} for i in range(10)), name="prompts.jsonl")
    return Cli(index, checkpoint, prompts)

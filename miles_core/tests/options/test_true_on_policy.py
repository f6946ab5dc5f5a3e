"""The true on-policy mode needs a backend and an engine that can, a CPU, and a model of which every operation is known."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from miles_core.numerics import obstacle
from miles_core.runtime.checks.placement import Machine

MODE = "--true-on-policy-mode"
EXACT = "--backend exact", "--engine exact", MODE


@pytest.fixture
def llama(checkpoint: Path) -> Path:
    """The checkpoint, as a Llama."""
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    return checkpoint


def test_a_backend_and_an_engine_that_can_are_let_through(cli, llama: Path) -> None:
    assert cli.errors(cli.but(*EXACT)) == []


@pytest.mark.parametrize(("kind", "other"), [("backend", "engine"), ("engine", "backend")])
def test_one_that_cannot_is_refused(cli, llama: Path, kind: str, other: str) -> None:
    (line,) = cli.errors(cli.but(f"--{other} exact", MODE))
    assert line.startswith("M278 toy 1.0: --true-on-policy-mode")
    assert f"cannot be had with {kind} toy" in line


def test_a_gpu_is_refused(cli, llama: Path) -> None:
    machine = Machine(cpus=8, gpus=8)
    (line,) = cli.errors(cli.but(*EXACT), machine)
    assert line.startswith("M278 ")
    assert "does not run on cuda" in line
    assert "--device cpu" in line
    assert cli.errors(cli.but(*EXACT, "--device cpu"), machine) == []


def test_tokens_of_earlier_weights_are_refused(cli, llama: Path) -> None:
    partial = "--over-sampling-batch-size 8", "--partial-rollout"
    (line,) = cli.errors(cli.but(*EXACT, *partial))
    assert line.startswith("M278 ")
    assert "--partial-rollout" in line
    assert cli.errors(cli.but(*EXACT, *partial, "--mask-offpolicy-in-partial-rollout")) == []


def test_an_unknown_model_is_refused(cli) -> None:
    (line,) = cli.errors(cli.but(*EXACT))
    assert line.startswith("M279 ")
    assert "its model_type is toy" in line


def test_a_supervised_run_has_nothing_to_compare(cli, llama: Path) -> None:
    planned = cli.plan(cli.but(*EXACT, "--loss-type imitate"))
    assert not any(error.code in ("M278", "M279") for error in planned.errors)
    assert any(line.startswith(MODE) and "no effect" in line for line in planned.warnings)


def test_what_stands_against_a_model() -> None:
    qwen3 = {"model_type": "qwen3", "hidden_act": "silu", "rope_scaling": None}
    assert obstacle(qwen3) == ""
    assert obstacle({**qwen3, "rope_parameters": {"rope_type": "llama3", "factor": 8.0}}) == ""
    assert "qwen3_moe" in obstacle({**qwen3, "model_type": "qwen3_moe"})
    assert "gelu" in obstacle({**qwen3, "hidden_act": "gelu"})
    for kind in ("dynamic", "longrope"):
        assert kind in obstacle({**qwen3, "rope_scaling": {"type": kind, "factor": 2.0}})


def test_validation_imports_no_torch() -> None:
    code = "import sys, miles_core.numerics, miles_core.runtime.planning; print({'torch', 'transformers'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"

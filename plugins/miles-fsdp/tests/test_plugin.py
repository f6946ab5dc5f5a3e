from __future__ import annotations

import subprocess
import sys

import pytest

from miles_core.config import ClusterOptions, TrainingOptions
from miles_core.options import Config, options_of
from miles_core.plugins.events import Configure
from miles_fsdp import plugin
from miles_fsdp.options import FsdpOptions


def problems(*groups) -> list[str]:
    found = []
    plugin.miles_configure(Configure(Config.of(*groups), found.append))
    return [error.code for error in found]


def test_record_names_the_backend_and_its_options():
    (record,) = plugin.miles_backend()
    assert (record.name, record.create, record.options) == ("fsdp", "miles_fsdp.backend:FsdpBackend", FsdpOptions)
    assert {"cpu", "cuda", "true_on_policy", "context_parallel"} <= record.capabilities


def test_flags_are_the_documented_ones():
    assert [(o.flag, o.default) for o in options_of(FsdpOptions, "fsdp")] == [
        ("--optimizer", "adam"),
        ("--fsdp-cpu-offload", False),
        ("--fsdp-state-dict-cpu-offload", True),
        ("--attn-implementation", "flash_attention_2"),
        ("--gradient-checkpointing", False),
        ("--context-parallel-size", 1),
        ("--dp-replicate-size", 1),
        ("--fsdp-compile", False),
        ("--fsdp-precision", "auto"),
    ]


def test_plugin_imports_nothing_heavy():
    heavy = {"torch", "ray", "transformers", "numpy", "safetensors"}
    code = f"import sys, miles_fsdp.plugin; print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_the_defaults_have_no_problem():
    assert problems(FsdpOptions(), ClusterOptions(device="cpu"), TrainingOptions()) == []


def test_flash_attention_on_cpu_is_refused_when_chosen():
    groups = FsdpOptions(), ClusterOptions(device="cpu"), TrainingOptions()
    config = Config.of(*groups).replaced(FsdpOptions, attn_implementation="flash_attention_2")
    found = []
    plugin.miles_configure(Configure(config, found.append))
    assert [error.code for error in found] == ["M341"]
    assert "--device is cpu" in found[0].line()


def test_half_precision_contradicts_the_true_on_policy_mode():
    exact = TrainingOptions(true_on_policy_mode=True)
    assert problems(FsdpOptions(precision="bf16"), ClusterOptions(device="cpu"), exact) == ["M278"]
    assert problems(FsdpOptions(precision="fp32"), ClusterOptions(device="cpu"), exact) == []


@pytest.mark.parametrize(
    "options",
    [TrainingOptions(lr_warmup_fraction=1.5), TrainingOptions(lr=1e-6, min_lr=1e-5, lr_decay_style="cosine")],
)
def test_impossible_schedules_are_refused(options):
    assert problems(options, FsdpOptions(), ClusterOptions()) == ["M347"]

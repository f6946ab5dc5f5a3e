"""The records of miles-algos, and the checks before a run."""

from __future__ import annotations

import importlib
import importlib.metadata
import subprocess
import sys
from typing import Any

import pytest

from miles_algos import plugin
from miles_algos.options import GroupRewardOptions, PolicyLossOptions
from miles_core.config import DataOptions, PluginOptions
from miles_core.errors import MilesError
from miles_core.options import Config, options_of
from miles_core.plugins.events import Configure

PROVIDERS = {
    "miles.advantage": plugin.miles_advantage,
    "miles.loss": plugin.miles_loss,
    "miles.filter": plugin.miles_filter,
    "miles.algo": plugin.miles_algo,
}


def problems(**groups: Any) -> list[str]:
    found: list[MilesError] = []
    config = Config.of(
        groups.get("policy", PolicyLossOptions()),
        groups.get("reward", GroupRewardOptions()),
        groups.get("data", DataOptions(n_samples_per_prompt=8)),
        groups.get("plugins", PluginOptions()),
    )
    plugin.miles_configure(Configure(config, found.append))
    assert all(e.exit_code == 2 and e.owner.startswith("miles-algos ") and e.fix for e in found)
    return [e.code for e in found]


@pytest.mark.parametrize("kind", PROVIDERS)
def test_entry_points_and_records_agree(kind: str) -> None:
    points = importlib.metadata.distribution("miles-algos").entry_points.select(group=kind)
    assert sorted(p.name for p in points) == sorted(r.name for r in PROVIDERS[kind]())
    assert {p.value for p in points} == {"miles_algos.plugin"}


def test_every_record_can_be_created() -> None:
    for kind in ("miles.advantage", "miles.loss", "miles.filter"):
        for record in PROVIDERS[kind]():
            module, _, attribute = record.create.partition(":")
            made = getattr(importlib.import_module(module), attribute)(Config([]))
            assert callable(made), record.name
            assert record.summary


def test_recipes_name_plugins_that_exist() -> None:
    names = {kind: {r.name for r in PROVIDERS[kind]()} for kind in PROVIDERS}
    for recipe in plugin.miles_algo():
        assert recipe.loss in names["miles.loss"]
        assert recipe.advantage is None or recipe.advantage in names["miles.advantage"]
        assert set(recipe.filters) <= names["miles.filter"]


def test_flags_are_the_documented_ones() -> None:
    flags = {o.flag for group in (GroupRewardOptions, PolicyLossOptions) for o in options_of(group, "x")}
    assert flags == {
        "--disable-grpo-std-normalization",
        "--disable-rewards-normalization",
        "--entropy-coef",
        "--eps-clip",
        "--eps-clip-c",
        "--eps-clip-high",
        "--kl-loss-coef",
        "--kl-loss-type",
        "--use-kl-loss",
        "--use-unbiased-kl",
    }


def test_the_plugin_imports_nothing_heavy() -> None:
    code = "import sys, miles_algos.plugin; print(sorted({'torch', 'numpy', 'ray', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_shaping_rewards_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from miles_core.options import Config\n"
        "from miles_algos.advantages.grpo import Grpo\n"
        "print(Grpo(Config([])).shape_rewards([1, 1], [0, 0]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[0.0, 0.0]"


def test_defaults_are_fine() -> None:
    assert problems() == []


@pytest.mark.parametrize(
    ("options", "codes"),
    [
        ({"eps_clip": -0.1}, ["M230"]),
        ({"eps_clip": 1.5}, ["M230"]),
        ({"eps_clip": float("nan")}, ["M230"]),
        ({"eps_clip_high": -0.1}, ["M230"]),
        ({"eps_clip": 0.0, "eps_clip_high": 2.0}, []),
        ({"eps_clip_c": 1.0}, ["M231"]),
        ({"eps_clip_c": float("nan")}, ["M231"]),
        ({"eps_clip_c": 3.0}, []),
        ({"kl_loss_coef": 0.1}, ["M232"]),
        ({"use_unbiased_kl": True}, ["M232"]),
        ({"kl_loss_coef": 0.1, "use_kl_loss": True}, []),
        ({"use_kl_loss": True}, []),
        ({"kl_loss_coef": -0.1, "use_kl_loss": True}, ["M233"]),
        ({"entropy_coef": float("inf")}, ["M233"]),
        ({"entropy_coef": -0.1}, []),
        ({"eps_clip": 2.0, "eps_clip_c": 0.5}, ["M230", "M231"]),
    ],
)
def test_policy_loss_options(options: dict[str, Any], codes: list[str]) -> None:
    assert problems(policy=PolicyLossOptions(**options)) == codes


def test_options_of_a_loss_that_is_not_selected_are_left_alone() -> None:
    wrong = PolicyLossOptions(eps_clip_c=0.5)
    assert problems(policy=wrong, plugins=PluginOptions(loss_type="sft_loss")) == []


@pytest.mark.parametrize("name", ["nonzero_std", "miles-algos:nonzero_std"])
def test_the_filter_refuses_groups_of_one(name: str) -> None:
    chosen = PluginOptions(dynamic_sampling_filter_path=name, advantage_estimator="other")
    assert problems(data=DataOptions(), plugins=chosen) == ["M234"]
    assert problems(plugins=chosen) == []


def test_grpo_refuses_groups_of_one() -> None:
    assert problems(data=DataOptions()) == ["M235"]
    assert problems(data=DataOptions(), reward=GroupRewardOptions(disable_rewards_normalization=True)) == []
    assert problems(data=DataOptions(), plugins=PluginOptions(loss_type="sft_loss")) == []


def test_an_option_of_an_algorithm_that_is_not_selected_names_it() -> None:
    from miles_core.options.resolve import resolve

    errors = resolve(["--backend", "fsdp", "--algo", "sft", "--eps-clip", "0.1"], environment={}).errors
    (line,) = [error.line() for error in errors if error.code == "M201"]
    assert "there is no option --eps-clip: it is an option of loss policy_loss" in line
    assert "which is not selected" in line

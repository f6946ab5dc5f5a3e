"""The records of miles-algos, and the checks before a run."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import subprocess
import sys

import pytest

from miles_algos import plugin
from miles_algos.options import RewardKlOptions
from miles_core.config import AlgorithmOptions
from miles_core.errors import MilesError
from miles_core.options import Config, options_of
from miles_core.options.resolve import resolve
from miles_core.plugins.events import Configure
from miles_core.plugins.records import option_groups
from miles_core.testing import config_of

PROVIDERS = {
    "miles.advantage": plugin.miles_advantage,
    "miles.loss": plugin.miles_loss,
    "miles.filter": plugin.miles_filter,
    "miles.algo": plugin.miles_algo,
}


def problems(*flags: str, samples: int = 8) -> list[str]:
    """Codes of what the plugin says about a command line whose flags all exist."""
    words = ["--backend", "fsdp", "--n-samples-per-prompt", str(samples), *flags]
    resolved = resolve(words, environment={})
    assert not resolved.errors, [error.line() for error in resolved.errors]
    found: list[MilesError] = []
    plugin.miles_configure(Configure(resolved.config, found.append))
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
            factory = getattr(importlib.import_module(module), attribute)
            if record.name == "custom_loss":
                with pytest.raises(ValueError, match="custom-loss-function-path"):
                    factory(Config([]))
                continue
            assert callable(factory(Config([]))), record.name
            assert record.summary


def test_recipes_name_plugins_that_exist() -> None:
    names = {kind: {r.name for r in PROVIDERS[kind]()} for kind in PROVIDERS}
    for recipe in plugin.miles_algo():
        assert recipe.loss in names["miles.loss"]
        assert recipe.advantage is None or recipe.advantage in names["miles.advantage"]
        assert set(recipe.filters) <= names["miles.filter"]


def test_records_carry_only_options_that_their_object_reads() -> None:
    """What is carried and never read would be a flag that does nothing."""
    for kind in ("miles.advantage", "miles.loss"):
        for record in PROVIDERS[kind]():
            if record.name == "custom_loss":
                continue
            groups = option_groups(record)
            # Switched on, so that options behind a switch are read too.
            on = {f.name: True for group in groups for f in dataclasses.fields(group) if f.name.startswith("use_")}
            config = config_of((*groups, AlgorithmOptions), **on, **({"kl_coef": 0.1} if RewardKlOptions in groups else {}))
            module, _, attribute = record.create.partition(":")
            getattr(importlib.import_module(module), attribute)(config)
            carried = {o.flag for group in groups for o in options_of(group, record.name)}
            assert carried <= config.reads(), (record.name, carried - config.reads())


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


ALGORITHMS = tuple(recipe.name for recipe in plugin.miles_algo())


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_recipes_are_free_of_contradictions(algo: str) -> None:
    assert problems("--algo", algo) == []


@pytest.mark.parametrize(
    ("flags", "codes"),
    [
        ("--eps-clip=-0.1", ["M230"]),
        ("--eps-clip 1.5", ["M230"]),
        ("--eps-clip-high=-0.1", ["M230"]),
        ("--eps-clip 0.0 --eps-clip-high 2.0", []),
        ("--eps-clip-c 1.0", ["M231"]),
        ("--eps-clip-c 3.0", []),
        ("--kl-loss-coef 0.1", ["M232"]),
        ("--use-unbiased-kl", ["M232"]),
        ("--kl-loss-type k2", ["M232"]),
        ("--kl-loss-coef 0.1 --use-kl-loss --kl-loss-type k2", []),
        ("--use-kl-loss", []),
        ("--kl-loss-coef=-0.1 --use-kl-loss", ["M233"]),
        ("--entropy-coef inf", ["M233"]),
        ("--entropy-coef=-0.1", []),
        ("--eps-clip 2.0 --eps-clip-c 0.5", ["M230", "M231"]),
        ("--ref-update-interval 4", ["M232"]),
        ("--ref-load somewhere", ["M232"]),
        ("--ref-update-interval 4 --use-kl-loss", []),
        ("--opd-kl-coef 0.5", ["M232"]),
        ("--opd-kl-coef=-1 --use-opd", ["M252"]),
        ("--use-tis --tis-clip 5", []),
        ("--tis-clip 5", ["M232"]),
        ("--use-tis --tis-clip 1 --tis-clip-low 2", ["M261"]),
        ("--use-tis --tis-clip 0", ["M261"]),
        ("--use-tis --use-rollout-logprobs", ["M260"]),
        ("--use-rs --use-rollout-logprobs", ["M260"]),
        ("--rs-level sequence", ["M232"]),
        ("--use-rs --rs-lower-bound 3", ["M261"]),
        ("--use-rs --rs-upper-bound 0.5", ["M261"]),
        ("--use-rs --rs-upper-bound 0.5 --rs-lower-bound 0.1", []),
        ("--opsm-delta 0.1", ["M232"]),
        ("--use-opsm --opsm-delta 0.1 --use-rollout-logprobs", []),
        ("--loss-type sapo --sapo-tau-neg 0", ["M261"]),
        ("--loss-type custom_loss", ["M262"]),
        ("--algo ppo --value-clip 0", ["M271"]),
        ("--algo ppo --value-clip 0.5", []),
        ("--algo ppo --gamma 1.2", ["M252"]),
        ("--algo ppo --lambd=-0.1", ["M252"]),
        ("--algo ppo --kl-coef=-1", ["M233"]),
        ("--algo rloo --kl-coef 0.1 --use-kl-loss --kl-loss-coef 0.1", ["M251"]),
        ("--algo rloo --kl-coef 0.1 --kl-loss-type k3 --ref-update-interval 3", []),
        ("--advantage-estimator reinforce_plus_plus", ["M250"]),
        ("--algo reinforce_plus_plus_baseline --no-normalize-advantages", ["M250"]),
    ],
)
def test_contradictions(flags: str, codes: list[str]) -> None:
    assert problems(*flags.split()) == codes


@pytest.mark.parametrize(
    "flag", ["--kl-coef", "--gamma", "--lambd", "--sapo-tau-pos", "--value-clip", "--custom-loss-function-path"]
)
def test_a_flag_that_means_nothing_for_grpo_is_refused(flag: str) -> None:
    (error,) = resolve(["--backend", "fsdp", "--algo", "grpo", flag, "0.5"], environment={}).errors
    assert error.code == "M201"
    assert "which is not selected" in error.line()


@pytest.mark.parametrize("name", ["nonzero_std", "miles-algos:nonzero_std"])
def test_the_filter_refuses_groups_of_one(name: str) -> None:
    flags = ("--dynamic-sampling-filter-path", name, "--disable-rewards-normalization")
    assert problems(*flags, samples=1) == ["M234"]
    assert problems(*flags) == []


@pytest.mark.parametrize("estimator", ["grpo", "gspo", "rloo", "reinforce_plus_plus_baseline"])
def test_group_relative_estimators_refuse_groups_of_one(estimator: str) -> None:
    flags = ("--advantage-estimator", estimator, "--normalize-advantages")
    assert problems(*flags, samples=1) == ["M235"]
    assert problems(*flags, "--disable-rewards-normalization", samples=1) == []
    assert problems(*flags, "--loss-type", "sft_loss", samples=1) == []


def test_an_option_of_an_algorithm_that_is_not_selected_names_it() -> None:
    errors = resolve(["--backend", "fsdp", "--algo", "sft", "--eps-clip", "0.1"], environment={}).errors
    (line,) = [error.line() for error in errors if error.code == "M201"]
    assert "there is no option --eps-clip: it is an option of loss " in line
    assert "policy_loss" in line
    assert "which is not selected" in line

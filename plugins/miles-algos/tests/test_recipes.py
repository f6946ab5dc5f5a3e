"""Recipes as a user meets them: what they resolve to, what contradicts them, and their pages in the documentation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from miles_algos import plugin
from miles_algos.recipes import RECIPES
from miles_core.config import PluginOptions
from miles_core.options import Source
from miles_core.options.resolve import Resolved, resolve
from miles_core.plugins.events import Configure

DOCS = Path(__file__).parents[3] / "docs" / "algorithms"
BY_NAME = {recipe.name: recipe for recipe in RECIPES}
NAMES = ("grpo", "dr_grpo", "dapo", "gspo", "ppo", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "rloo", "cispo", "sapo")
SWITCH = {"on": True, "off": False}


def resolved(*flags: str) -> Resolved:
    return resolve(["--backend", "fsdp", "--n-samples-per-prompt", "8", "--rm-type", "math", *flags], environment={})


def said(*flags: str) -> tuple[list[str], list[str]]:
    """Errors and warnings of the plugin, as lines."""
    found = resolved(*flags)
    assert not found.errors, [error.line() for error in found.errors]
    errors: list[str] = []
    warnings: list[str] = []
    plugin.miles_configure(Configure(found.config, lambda error: errors.append(error.line()), warnings.append))
    return errors, warnings


def test_every_algorithm_has_a_recipe() -> None:
    assert set(BY_NAME) == {*NAMES, "opd", "sft"}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_recipe_is_what_it_says(recipe: Any) -> None:
    found = resolved("--algo", recipe.name)
    assert not found.errors
    assert found.selection.loss.name == recipe.loss
    assert recipe.advantage is None or found.selection.advantage.name == recipe.advantage
    assert tuple(f.name for f in found.selection.filters) == recipe.filters
    values = {option.flag: value for option, value in found.config.items()}
    for key, expected in recipe.defaults.items():
        assert (values[f"--{key}"].value, values[f"--{key}"].source) == (expected, Source.RECIPE), key
    assert said("--algo", recipe.name) == ([], [])


def test_an_estimator_named_alone_is_trained_with_its_own_loss() -> None:
    found = resolved("--advantage-estimator", "gspo")
    assert found.config.peek(PluginOptions).loss_type == "gspo_loss"
    errors, warnings = said("--advantage-estimator", "gspo")
    assert not errors
    assert len(warnings) == 1
    assert warnings[0].startswith("--eps-clip 0.2 hardly ever clips with loss gspo_loss")
    assert said("--advantage-estimator", "gspo", "--eps-clip", "0.0003") == ([], [])
    for name in ("grpo", "ppo", "rloo", "reinforce_plus_plus", "reinforce_plus_plus_baseline"):
        assert resolved("--advantage-estimator", name).config.peek(PluginOptions).loss_type == "policy_loss"


@pytest.mark.parametrize("loss", ["policy_loss", "cispo", "sapo"])
def test_gspo_without_its_ratio_is_refused(loss: str) -> None:
    (error,), _ = said("--advantage-estimator", "gspo", "--loss-type", loss)
    assert error.startswith("M253 ")
    assert said("--advantage-estimator", "grpo", "--loss-type", loss) == ([], [])


def test_another_loss_leaves_the_defaults_of_the_recipes_own_out() -> None:
    for flags in (
        ("--algo", "gspo", "--loss-type", "sapo", "--advantage-estimator", "grpo"),
        ("--algo", "dapo", "--loss-type", "sapo"),
    ):
        assert said(*flags) == ([], [])
    assert said("--algo", "reinforce_plus_plus", "--advantage-estimator", "grpo") == ([], [])


def test_switching_off_what_a_recipe_switches_on_is_no_contradiction() -> None:
    assert said("--algo", "reinforce_plus_plus_baseline", "--no-use-kl-loss") == ([], [])
    assert said("--algo", "reinforce_plus_plus_baseline", "--no-use-kl-loss", "--kl-coef", "0.01") == ([], [])
    assert said("--algo", "reinforce_plus_plus", "--kl-coef", "0") == ([], [])
    assert said("--algo", "dr_grpo", "--disable-rewards-normalization") == ([], [])


def test_what_the_user_says_and_has_no_effect_is_an_error() -> None:
    for flags in (
        ("--algo", "reinforce_plus_plus_baseline", "--no-use-kl-loss", "--kl-loss-coef", "0.1"),
        ("--algo", "reinforce_plus_plus", "--kl-coef", "0", "--kl-loss-type", "k3"),
        ("--algo", "grpo", "--disable-rewards-normalization", "--disable-grpo-std-normalization"),
        ("--algo", "ppo", "--opd-kl-coef", "0.1"),
    ):
        errors, _ = said(*flags)
        assert [error[:5] for error in errors] == ["M232 "], flags


def test_two_kl_penalties_name_where_each_comes_from() -> None:
    (error,), _ = said("--algo", "reinforce_plus_plus", "--use-kl-loss", "--kl-loss-coef", "0.01")
    assert error.startswith("M251 ")
    assert "--kl-coef 0.001 (recipe reinforce_plus_plus) and --kl-loss-coef 0.01 (argument " in error


def test_a_filter_of_rewards_needs_one() -> None:
    flags = ["--backend", "fsdp", "--algo", "opd", "--teacher-load", "x", "--dynamic-sampling-filter-path", "nonzero_std"]
    errors: list[str] = []
    plugin.miles_configure(Configure(resolve(flags, environment={}).config, lambda error: errors.append(error.code)))
    assert errors == ["M254"]
    errors.clear()
    flags += ["--rm-type", "math", "--n-samples-per-prompt", "4"]
    plugin.miles_configure(Configure(resolve(flags, environment={}).config, lambda error: errors.append(error.code)))
    assert errors == []


def test_other_losses_are_asked_about_groups_once_an_estimator_is_named() -> None:
    base = ("--loss-type", "custom_loss", "--custom-loss-function-path", "mine.loss", "--n-samples-per-prompt", "1")

    def codes(*flags: str) -> list[str]:
        found: list[str] = []
        config = resolve(["--backend", "fsdp", *base, *flags], environment={}).config
        plugin.miles_configure(Configure(config, lambda error: found.append(error.code)))
        return found

    assert codes() == []
    assert codes("--advantage-estimator", "grpo") == ["M235"]
    assert codes("--advantage-estimator", "grpo", "--disable-compute-advantages-and-returns") == []
    assert codes("--advantage-estimator", "reinforce_plus_plus") == ["M250"]


@pytest.mark.parametrize(
    ("algo", "flag"),
    [
        *((algo, "--kl-coef") for algo in ("grpo", "dr_grpo", "dapo", "gspo", "cispo", "sapo", "opd")),
        *((algo, "--gamma") for algo in ("grpo", "rloo", "reinforce_plus_plus_baseline", "opd")),
        *((algo, "--lambd") for algo in ("grpo", "reinforce_plus_plus", "opd")),
        *((algo, "--disable-grpo-std-normalization") for algo in ("rloo", "ppo", "reinforce_plus_plus_baseline", "opd")),
        *((algo, "--disable-rewards-normalization") for algo in ("ppo", "reinforce_plus_plus", "opd")),
        *((algo, "--eps-clip") for algo in ("sapo", "sft")),
        ("opd", "--use-opd"),
        ("gspo", "--eps-clip-c"),
    ],
)
def test_a_flag_that_means_nothing_for_the_algorithm_is_refused(algo: str, flag: str) -> None:
    value = [] if flag.startswith(("--disable", "--use")) else ["0.5"]
    codes = [error.code for error in resolved("--algo", algo, flag, *value).errors]
    assert codes == ["M201"]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_every_recipe_has_a_page_that_states_its_defaults(recipe: Any) -> None:
    page = DOCS / f"{recipe.name}.md"
    text = page.read_text(encoding="utf-8")
    assert f"![learning curve](../images/learning/{recipe.name}.png)" in text
    section = text[text.index("\n## What the recipe sets\n") + 1 :].partition("\n## ")[0]
    rows = [
        [cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("| `")
    ]
    stated = {flag: SWITCH.get(value, value) for flag, value in rows}
    expected: dict[str, Any] = {"--advantage-estimator": recipe.advantage or "none", "--loss-type": recipe.loss}
    if recipe.filters:
        (expected["--dynamic-sampling-filter-path"],) = recipe.filters
    expected |= {f"--{key}": value if isinstance(value, bool) else str(value) for key, value in recipe.defaults.items()}
    assert stated == expected
    for heading in ("## When", "## Options", "## Metrics"):
        assert f"\n{heading}\n" in text, heading


def test_the_index_lists_every_recipe_with_its_parts() -> None:
    text = (DOCS / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[`(\w+)`\]\((\w+)\.md\) \| `?(\w+)`? \| `(\w+)` \|", text, flags=re.MULTILINE)
    assert {name: (page, advantage, loss) for name, page, advantage, loss in rows} == {
        recipe.name: (recipe.name, recipe.advantage or "none", recipe.loss) for recipe in RECIPES
    }


def test_pages_name_options_that_exist_for_them() -> None:
    """Every option in the tables of a recipe's page is one that a run with the recipe takes."""
    for recipe in RECIPES:
        text = (DOCS / f"{recipe.name}.md").read_text(encoding="utf-8")
        section = text[text.index("\n## Options\n") :].partition("\n## Metrics")[0]
        named = {
            flag
            for line in section.splitlines()
            if line.startswith("| `")
            for flag in re.findall(r"`(--[a-z-]+)`", line.split("|")[1])
        }
        known = {option.flag for option, _ in resolved("--algo", recipe.name).config.items()}
        missing = named - known
        assert not missing - ({"--use-opd", "--opd-kl-coef"} if recipe.name == "opd" else set()), (recipe.name, missing)

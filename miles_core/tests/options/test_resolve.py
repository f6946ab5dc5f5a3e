"""Choosing plugins from the options, and what happens to options when that fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from miles_core.config import PluginOptions, TrainingOptions
from miles_core.options import Source
from miles_core.plugins.metadata import Row


def codes(resolved) -> list[str]:
    return [error.code for error in resolved.errors]


def test_options_of_selected_plugins_only(cli) -> None:
    assert not cli.resolve([*cli.plugins, "--toy-width", "5", "--toy-slots", "2", "--mean-scale", "0.5"]).errors
    (error,) = cli.resolve([*cli.plugins, "--ghost-size", "5"]).errors
    assert error.code == "M201"
    assert "ghost 2.0" in error.line()
    assert "not selected" in error.line()


def test_an_unknown_flag_has_a_suggestion_from_the_plugins_flags(cli) -> None:
    (error,) = cli.resolve([*cli.plugins, "--toy-widht", "5"]).errors
    assert error.line().startswith("M201 argument 13: there is no option --toy-widht")
    assert "did you mean --toy-width?" in error.line()


def test_an_unknown_plugin_is_one_error_without_noise_about_its_flags(cli) -> None:
    arguments = [*cli.plugins[2:], "--backend", "tyo", "--toy-width", "5", "--optimizer", "adam", "--numrollout", "4"]
    resolved = cli.resolve(arguments)
    assert codes(resolved) == ["M101", "M201"]
    assert "did you mean 'toy'?" in resolved.errors[0].line()
    assert "--num-rollout" in resolved.errors[1].line()


def test_a_broken_plugin_is_an_error_when_it_is_named(cli) -> None:
    arguments = [a if i != 3 else "ghost" for i, a in enumerate(cli.plugins)]
    assert codes(cli.resolve(arguments)) == ["M103"]


def test_blocked_plugins(cli) -> None:
    assert set(codes(cli.resolve([*cli.plugins, "--block-plugins", "toy"]))) == {"M104"}
    assert set(codes(cli.resolve(cli.plugins, MILES_ALLOW_PLUGINS="elsewhere"))) == {"M104"}
    assert not cli.resolve([*cli.plugins, "--allow-plugins", "toy"]).errors


def test_two_owners_of_one_flag(cli) -> None:
    (error,) = cli.resolve([*cli.plugins[2:], "--backend", "thief", "--lr", "1"]).errors
    assert error.code == "M108"
    assert "core (TrainingOptions.lr)" in error.line()
    assert "thief" in error.line() or "toy 1.0" in error.line()


def test_a_recipe_chooses_and_the_command_line_wins(cli) -> None:
    base = ["--backend", "toy", "--engine", "toy", "--rm-type", "exact", "--logger", "quiet", "--algo", "recipe"]
    chosen = cli.resolve(base)
    assert not chosen.errors
    assert not chosen.warnings
    selection = chosen.selection
    assert (selection.advantage.name, selection.loss.name) == ("mean", "clip")
    assert [ref.name for ref in selection.filters] == ["spread", "short"]
    value = chosen.config.value(PluginOptions, "loss_type")
    assert (value.value, value.source) == ("clip", Source.RECIPE)
    assert chosen.config.peek(TrainingOptions).seed == 7

    other = cli.resolve([*base, "--advantage-estimator", "other", "--loss-type", "imitate"])
    assert (other.selection.advantage.name, other.selection.loss.name) == ("other", "imitate")
    assert [line.split(" ")[0] for line in other.warnings] == ["--advantage-estimator", "--loss-type"]
    assert "argument 11" in other.warnings[0]
    assert "--algo recipe" in other.warnings[0]

    one = cli.resolve([*base, "--dynamic-sampling-filter-path", "spread"])
    assert [ref.name for ref in one.selection.filters] == ["spread"]


def test_a_recipe_of_one_filter_names_it_in_the_options(cli) -> None:
    resolved = cli.resolve(["--backend", "toy", "--engine", "toy", "--rm-type", "exact", "--logger", "quiet", "--algo", "single"])
    assert resolved.config.peek(PluginOptions).dynamic_sampling_filter_path == "spread"
    assert [ref.name for ref in resolved.selection.filters] == ["spread"]


def test_algo_may_name_an_estimator(cli) -> None:
    resolved = cli.resolve(
        ["--backend", "toy", "--engine", "toy", "--loss-type", "clip", "--rm-type", "exact", "--logger", "quiet", "--algo", "other"]
    )
    assert not resolved.errors
    assert resolved.selection.advantage.name == "other"
    assert resolved.selection.algo is None
    (error, *_) = cli.resolve([*cli.plugins, "--algo", "recpie"]).errors
    assert error.code == "M101"
    assert "'recipe'" in error.line()


def test_an_estimator_named_alone_brings_the_loss_of_its_recipe(cli) -> None:
    base = ["--backend", "toy", "--engine", "toy", "--rm-type", "exact", "--logger", "quiet", "--advantage-estimator", "penalty"]
    resolved = cli.resolve(base)
    assert not resolved.errors
    value = resolved.config.value(PluginOptions, "loss_type")
    assert (value.value, value.source, value.place) == ("clip", Source.RECIPE, "--advantage-estimator penalty")
    assert resolved.selection.algo is None
    assert resolved.config.peek(TrainingOptions).seed != 7
    said = cli.resolve([*base, "--loss-type", "imitate"])
    assert said.selection.loss.name == "imitate"
    assert not said.errors
    assert not said.warnings


def test_defaults_of_a_recipe_for_what_was_replaced_are_left_out(cli) -> None:
    base = ["--backend", "toy", "--engine", "toy", "--rm-type", "exact", "--logger", "quiet", "--algo", "penalty"]
    resolved = cli.resolve([*base, "--advantage-estimator", "mean"])
    assert not resolved.errors
    assert resolved.config.peek(TrainingOptions).seed == 7


def test_a_supervised_loss_needs_no_engine_advantage_or_reward(cli) -> None:
    base = ["--backend", "toy", "--loss-type", "imitate", "--logger", "quiet"]
    assert not cli.resolve(base).errors
    assert "M101" in codes(cli.resolve([*base, "--eval-interval", "2"]))
    assert codes(cli.resolve([*base, "--engine", "ghost"])) == ["M103"]
    # Options of what is named exist, so that one command line serves both kinds of training.
    assert not cli.resolve([*base, "--engine", "toy", "--toy-slots", "2"]).errors


def test_dotted_paths_are_checked(cli, tmp_path: Path) -> None:
    code = tmp_path / "mine.py"
    code.write_text("async def grade(sample):\n    return 1.0\n\ndef keep(samples):\n    return True\n\ndef bad():\n    pass\n")
    without = cli.plugins[:8] + cli.plugins[10:]
    good = cli.resolve([*without, "--custom-rm-path", f"{code}:grade", "--dynamic-sampling-filter-path", f"{code}:keep"])
    assert not good.errors
    assert good.selection.reward.adapter == "reward"
    assert good.selection.filters[0].adapter == "filter"
    bad = cli.resolve([*without, "--custom-rm-path", f"{code}:bad", "--dynamic-sampling-filter-path", "no.such.module"])
    assert codes(bad) == ["M111", "M111"]


def test_all_mistakes_come_together(cli, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("seeed: 1\nlr: x\n")
    arguments = [*cli.plugins, "--config", str(path), "--num-rollout", "many", "--wat", "--colocate", "no"]
    found = codes(cli.resolve(arguments, MILES_SEED="y"))
    assert sorted(found) == ["M201", "M202", "M203", "M203", "M203", "M206"]


def test_invocation_options_are_taken_out(cli) -> None:
    resolved = cli.resolve([*cli.plugins, "--dry-run", "-h"])
    assert not resolved.errors
    assert resolved.invocation.dry_run
    assert resolved.invocation.help
    assert "--dry-run" not in {option.flag for option, _ in resolved.config.items()}


@pytest.mark.parametrize("name", ["twin", "toy:twin"])
def test_a_name_of_two_distributions(cli, name: str) -> None:
    row = Row("miles.logger", "twin", "toy_plugin", "toy", "1.0", "wheel", (), "")
    rows = [row, Row("miles.logger", "twin", "toy_plugin", "other", "1.0", "wheel", (), "")]
    index = type(cli.index)([*rows, *_rows(cli.index)])
    from miles_core.options.resolve import resolve

    found = codes(resolve([*cli.plugins[:-1], name], environment={}, index=index))
    assert found == (["M102"] if name == "twin" else ["M107"])


def _rows(index) -> list[Row]:
    return [Row(e.group, e.name, e.value, e.distribution, e.version, e.origin, (), e.location) for e in index.entries]

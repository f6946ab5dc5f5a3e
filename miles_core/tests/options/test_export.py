"""The files of a run folder."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from miles_core.config import CORE_GROUPS, DataOptions, RolloutOptions, TrainingOptions
from miles_core.options.export import config_yaml, lock, unread_report, write_config, write_lock
from miles_core.options.sources import ConfigFile
from miles_core.options.table import FlagTable


def values(config) -> dict[str, object]:
    return {option.flag: value.value for option, value in config.items() if not option.declared.secret}


def test_a_written_config_reads_back_to_the_same_values(cli, tmp_path: Path) -> None:
    arguments = cli.but("--algo recipe", "--lr 1e-300", "--rollout-stop </a>", "--rollout-temperature 0.7", "--no-offload-train",
                        "--toy-table {\"a\":1}", "--toy-modes 3", "--toy-key hunter2")  # fmt: skip
    first = cli.plan(arguments, MILES_SEED="9")
    assert not first.errors
    path = tmp_path / "config.yaml"
    write_config(first.config, path)
    text = path.read_text(encoding="utf-8")
    assert "hunter2" not in text
    assert "# toy-key: secret, not written" in text
    assert "seed: 9  # environment, MILES_SEED" in text
    assert yaml.safe_load(text)["num-rollout"] == 3

    second = cli.plan(["--config", str(path)])
    assert not second.errors
    assert values(second.config) == values(first.config)
    assert second.plan.batch == first.plan.batch
    assert second.plan.placement == first.plan.placement
    assert second.warnings == first.warnings == []


def test_a_written_config_goes_on_with_a_change(cli, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    write_config(cli.plan(cli.valid).config, path)
    again = cli.plan(["--config", str(path), "--actor-num-gpus-per-node", "4", "--num-steps-per-rollout", "2"])
    assert not again.errors
    assert (again.plan.placement.engines, again.plan.batch.global_batch_size) == (4, 4)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    stop=st.lists(st.text(st.characters(codec="utf-8")), max_size=3),
    lr=st.floats(allow_nan=False),
    data=st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), st.integers() | st.booleans(), max_size=3),
    key=st.text(st.characters(codec="utf-8")),
)
def test_any_value_survives_the_file(tmp_path: Path, stop: list[str], lr: float, data: dict[str, object], key: str) -> None:
    from miles_core.options import Config

    config = Config.of(RolloutOptions(rollout_stop=stop), TrainingOptions(lr=lr),
                       DataOptions(label_key=key, apply_chat_template_kwargs=data))  # fmt: skip
    path = tmp_path / "config.yaml"
    write_config(config, path)
    parsed = ConfigFile(str(path)).parse(FlagTable([o for o, _ in config.items()]))
    assert not parsed.errors
    found = {s.option.field: s.value for s in parsed.settings}
    expected = {"rollout_stop": stop, "lr": lr, "label_key": key, "apply_chat_template_kwargs": data}
    defaults = {"lr": 1e-6, "apply_chat_template_kwargs": {}}
    assert found == {name: value for name, value in expected.items() if value != defaults.get(name, object())}


def test_every_core_option_has_a_line(cli) -> None:
    text = config_yaml(cli.plan(cli.valid).config)
    for option, _ in cli.plan(cli.valid).config.items():
        if option.group in CORE_GROUPS:
            assert f"\n{option.flag[2:]}: " in text or f"\n# {option.flag[2:]}: " in text


def test_the_lock_names_every_plugin(cli, tmp_path: Path) -> None:
    plan = cli.plan(cli.but("--algo recipe")).plan
    write_lock(plan, tmp_path / "lock.json")
    written = json.loads((tmp_path / "lock.json").read_text(encoding="utf-8"))
    assert written == lock(plan)
    names = {(each["kind"], each["name"], each["distribution"], each["version"]) for each in written["plugins"]}
    assert ("backend", "toy", "toy", "1.0") in names
    assert ("filter", "short", "toy", "1.0") in names
    assert set(written) == {"miles-core", "python", "plugins"}


def test_options_that_nobody_read_are_named_with_their_place(cli) -> None:
    config = cli.plan(cli.but("--weight-decay 0.5", "--toy-width 9"), MILES_SEED="9").config
    report = unread_report(config, {"--prompt-data", "--label-key", "--rollout-max-response-len", "--seed"})
    assert [line.split()[2] for line in report] == ["--weight-decay", "--toy-width"]
    assert "argument" in report[0]
    assert "owner toy" in report[1]

"""Evaluation sets: by pairs, by a file, and what wins over what."""

from __future__ import annotations

from pathlib import Path

import pytest

from miles_core.config import DataOptions, EvaluationOptions, RolloutOptions
from miles_core.errors import UsageError
from miles_core.options import Config
from miles_core.rollout.evaluation import EvaluationSet, evaluation_sets

ROLLOUT = RolloutOptions(rollout_temperature=0.9, rollout_top_p=0.8, rollout_top_k=7, rollout_max_response_len=100)
DATA = DataOptions(input_key="question", label_key="answer")


def sets(**options) -> list[EvaluationSet]:
    return evaluation_sets(Config.of(EvaluationOptions(eval_interval=2, **options), ROLLOUT, DATA))


@pytest.fixture
def yaml(tmp_path: Path):
    """The sets of a YAML text."""

    def read(text: str, **options) -> list[EvaluationSet]:
        path = tmp_path / "eval.yaml"
        path.write_text(text, encoding="utf-8")
        return sets(eval_config=str(path), **options)

    return read


def test_no_interval_means_no_sets() -> None:
    assert evaluation_sets(Config.of(EvaluationOptions(eval_prompt_data=["a", "a.jsonl"]), ROLLOUT, DATA)) == []


def test_pairs_sample_like_the_rollout_unless_told_otherwise() -> None:
    first, second = sets(eval_prompt_data=["a", "a.jsonl", "b", "b.jsonl@[0:9]"])
    assert first == EvaluationSet("a", "a.jsonl", "question", "answer", "metadata", "tools", 1, 0.9, 0.8, 7, 100, None, 0)
    assert (second.name, second.path) == ("b", "b.jsonl@[0:9]")
    (told,) = sets(
        eval_prompt_data=["a", "a.jsonl"],
        eval_temperature=0.0,
        eval_top_p=1.0,
        eval_top_k=-1,
        eval_max_response_len=9,
        eval_max_prompt_len=8,
        eval_min_new_tokens=3,
        n_samples_per_eval_prompt=4,
    )
    assert told == EvaluationSet("a", "a.jsonl", "question", "answer", "metadata", "tools", 4, 0.0, 1.0, -1, 9, 8, 3)


def test_a_set_wins_over_defaults_over_options(yaml) -> None:
    first, second = yaml(
        """
        eval:
          defaults: {top_p: 0.5, temperature: 0.6, label_key: key}
          datasets:
            - {name: a, path: a.jsonl, temperature: 0.0, n_samples_per_eval_prompt: 16}
            - {name: b, path: b.jsonl}
        """,
        eval_temperature=0.7,
        eval_top_k=5,
    )
    assert (first.temperature, first.top_p, first.top_k, first.label_key, first.n_samples_per_eval_prompt) == (
        0.0,
        0.5,
        5,
        "key",
        16,
    )
    assert (second.temperature, second.max_response_len, second.n_samples_per_eval_prompt) == (0.6, 100, 1)


def test_null_falls_back(yaml) -> None:
    (made,) = yaml("{defaults: {temperature: 0.6, top_p: null}, datasets: [{name: a, path: a.jsonl, temperature: null}]}")
    assert (made.temperature, made.top_p) == (0.6, 0.8)


def test_sets_by_name_and_interpolations(yaml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVAL_FOLDER", "/data")
    first, second = yaml(
        "datasets: {a: {path: '${oc.env:EVAL_FOLDER}/a.jsonl', temperature: 0}, b: {path: '${datasets.a.path}@[:5]'}}"
    )
    assert (first.name, first.path, first.temperature) == ("a", "/data/a.jsonl", 0)
    assert (second.name, second.path) == ("b", "/data/a.jsonl@[:5]")


@pytest.mark.parametrize(
    "place", ["defaults: {temperatur: 1}, datasets: [{name: a, path: p}]", "datasets: [{name: a, path: p, temperatur: 1}]"]
)
def test_unknown_settings_are_refused(yaml, place: str) -> None:
    with pytest.raises(UsageError, match="M321") as caught:
        yaml(f"{{{place}}}")
    assert "did you mean 'temperature'" in caught.value.fix
    assert caught.value.owner.endswith("eval.yaml")


def test_an_unknown_setting_like_no_other_lists_them(yaml) -> None:
    with pytest.raises(UsageError, match="M321") as caught:
        yaml("datasets: [{name: a, path: p, zzz: 1}]")
    assert "max_response_len" in caught.value.fix


@pytest.mark.parametrize(
    "setting",
    [
        "temperature: hot",
        "temperature: -1",
        "temperature: .nan",
        "temperature: .inf",
        "top_p: 0",
        "top_p: 1.5",
        "top_k: 0",
        "top_k: 1.5",
        "n_samples_per_eval_prompt: 0",
        "n_samples_per_eval_prompt: true",
        "max_response_len: 0",
        "min_new_tokens: -1",
        "input_key: 3",
        "path: ''",
    ],
)
def test_illegal_settings_are_refused(yaml, setting: str) -> None:
    with pytest.raises(UsageError, match="M216") as caught:
        yaml(
            f"datasets: [{{name: a, path: p}}, {{name: b, path: p, {setting}}}]"
            if "path" not in setting
            else f"datasets: [{{name: b, {setting}}}]"
        )
    assert f"set b: {setting.partition(':')[0]}" in caught.value.what


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        "datasets: []",
        "datasets: [a]",
        "datasets: 3",
        "defaults: 3\ndatasets: [{name: a, path: p}]",
        "a: [",
        "datasets: [{name: a, path: '${b}'}]",
    ],
)
def test_files_that_cannot_be_used(yaml, text: str) -> None:
    with pytest.raises(UsageError, match="M216"):
        yaml(text)


def test_a_missing_file_and_a_missing_path(yaml, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="M216"):
        sets(eval_config=str(tmp_path / "absent.yaml"))
    with pytest.raises(UsageError, match="lacks path"):
        yaml("datasets: [{name: a}]")

"""One source of teacher log-probs, and a teacher with the policy's tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from miles_core.runtime.checks.teacher import token_ids

DISTIL = "--advantage-estimator distil"
URL = "--teacher-url http://127.0.0.1:30000"


def tokenizer(words, added=()) -> str:
    document = {"model": {"vocab": words}, "added_tokens": [{"id": number, "content": word} for word, number in added]}
    return json.dumps(document)


@pytest.fixture
def teacher(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint like the policy's, with the same tokens and a larger head."""
    words = {"a": 0, "b": 1}
    for folder, size in ((checkpoint, 3), (tmp_path / "teacher", 8)):
        if not folder.exists():
            shutil.copytree(checkpoint, folder)
        (folder / "config.json").write_text(json.dumps({"model_type": "toy", "vocab_size": size}))
        (folder / "tokenizer.json").write_text(tokenizer(words, [("<end>", 2)]))
    return tmp_path / "teacher"


def planned(cli, *changes: str, drop=(), **environment: str) -> tuple[list[str], list[str]]:
    found = cli.plan(cli.but(*changes, drop=drop), **environment)
    return [error.line() for error in found.errors], [line for line in found.warnings if "teacher" in line]


def test_an_estimator_that_needs_a_teacher_needs_exactly_one(cli, teacher: Path) -> None:
    (line,) = planned(cli, DISTIL)[0]
    assert line.startswith("M286 advantage distil: there is no teacher")
    (line,) = planned(cli, DISTIL, URL, f"--teacher-load {teacher}")[0]
    assert line.startswith("M286")
    assert "both" in line
    for source in (URL, f"--teacher-load {teacher}"):
        assert planned(cli, DISTIL, source) == ([], [])


def test_a_switch_may_be_what_needs_it(cli) -> None:
    assert planned(cli, "--advantage-estimator penalty") == ([], [])
    (line,) = planned(cli, "--advantage-estimator penalty", "--use-penalty")[0]
    assert line.startswith("M286 --use-penalty: there is no teacher")
    assert planned(cli, "--advantage-estimator penalty", "--use-penalty", URL) == ([], [])


@pytest.mark.parametrize("changes", [(), ("--advantage-estimator penalty",), ("--loss-type imitate",)])
def test_a_teacher_that_nobody_needs_is_warned_of(cli, changes) -> None:
    errors, warnings = planned(cli, *changes, URL)
    assert not errors
    assert any(line.startswith("--teacher-url") and "nothing that this run selects" in line for line in warnings)


def test_settings_of_a_server_mean_nothing_without_one(cli, teacher: Path) -> None:
    errors, warnings = planned(cli, DISTIL, f"--teacher-load {teacher}", "--teacher-timeout 5")
    assert not errors
    assert any(line.startswith("--teacher-timeout (") and "--teacher-url is not given" in line for line in warnings)


def test_no_reward_is_needed_unless_the_run_evaluates(cli) -> None:
    assert planned(cli, DISTIL, URL, drop=["--rm-type"])[0] == []
    assert cli.plan(cli.but(DISTIL, URL, drop=["--rm-type"])).require().plugins.reward is None
    held_out = f"--eval-prompt-data held {cli.prompts}"
    arguments = [*cli.but(DISTIL, URL, "--eval-interval 1", drop=["--rm-type"]), *held_out.split()]
    assert any(line.startswith("M208") and "--rm-type" in line for line in cli.errors(arguments))
    assert any(line.startswith("M208") for line in planned(cli, drop=["--rm-type"])[0]), "other estimators read rewards"


@pytest.mark.parametrize("url", ["127.0.0.1:30000", "ftp://host", "http://", "http://host:port"])
def test_an_address_that_is_none(cli, url: str) -> None:
    (line,) = planned(cli, DISTIL, f"--teacher-url {url}")[0]
    assert line.startswith("M289")


def test_secrets_belong_into_the_environment(cli) -> None:
    (line,) = planned(cli, DISTIL, URL, "--teacher-api-key k3y-of-mine")[0]
    assert line.startswith("M289")
    assert "MILES_TEACHER_API_KEY" in line
    assert "k3y-of-mine" not in line
    (line,) = planned(cli, DISTIL, "--teacher-url http://me:k3y@host")[0]
    assert line.startswith("M289")
    assert "k3y" not in line
    assert planned(cli, DISTIL, URL, MILES_TEACHER_API_KEY="k3y-of-mine") == ([], [])


def test_a_folder_that_is_no_checkpoint(cli, tmp_path: Path) -> None:
    (line,) = planned(cli, DISTIL, f"--teacher-load {tmp_path / 'none'}")[0]
    assert line.startswith("M330")


@pytest.mark.parametrize(
    ("words", "added", "part"),
    [
        ({"a": 1, "b": 0}, [("<end>", 2)], "2 of 3 tokens differ: 'a', which is 0 for the policy, has id 1"),
        ({"a": 0, "b": 1}, [("<eos>", 2)], "1 of 3 tokens differ: '<end>', which is 2 for the policy, does not exist"),
    ],
)
def test_other_tokens_are_refused(cli, teacher: Path, words, added, part: str) -> None:
    (teacher / "tokenizer.json").write_text(tokenizer(words, added))
    (line,) = planned(cli, DISTIL, f"--teacher-load {teacher}")[0]
    assert line.startswith("M287")
    assert part in line


def test_a_head_that_is_too_small_is_refused(cli, teacher: Path) -> None:
    (teacher / "config.json").write_text(json.dumps({"model_type": "toy", "text_config": {"vocab_size": 2}}))
    (line,) = planned(cli, DISTIL, f"--teacher-load {teacher}")[0]
    assert line.startswith("M288")
    assert "scores 2 tokens and the policy can sample 3" in line


def test_responses_that_are_too_long_for_it_are_refused(cli, teacher: Path) -> None:
    (teacher / "config.json").write_text(json.dumps({"model_type": "toy", "vocab_size": 3, "max_position_embeddings": 20}))
    load = f"--teacher-load {teacher}"
    assert planned(cli, DISTIL, load, "--rollout-max-context-len 20")[0] == []
    (line,) = planned(cli, DISTIL, load, "--rollout-max-context-len 21")[0]
    assert line.startswith("M288")
    assert "it has 20 positions" in line
    (line,) = planned(cli, DISTIL, load, "--rollout-max-prompt-len 14")[0]
    assert "may have 22 tokens" in line


def test_tokens_that_cannot_be_read_are_warned_of(cli, teacher: Path) -> None:
    (teacher / "tokenizer.json").unlink()
    errors, warnings = planned(cli, DISTIL, f"--teacher-load {teacher}")
    assert not errors
    assert any("not compared" in line and str(teacher) in line for line in warnings)


def test_tokens_are_read_from_every_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0}))
    assert token_ids(tmp_path) == {"a": 0}
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<end>": 1}))
    assert token_ids(tmp_path) == {"a": 0, "<end>": 1}
    (tmp_path / "tokenizer.json").write_text(tokenizer([["x", -1.0], ["y", -2.0]], [("<s>", 2)]))
    assert token_ids(tmp_path) == {"x": 0, "y": 1, "<s>": 2}
    (tmp_path / "tokenizer.json").write_text("{")
    assert token_ids(tmp_path) == {"a": 0, "<end>": 1}

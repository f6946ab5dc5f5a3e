"""Checkpoint directories, lengths and resuming."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from miles_core.config import RolloutOptions
from miles_core.state import StateStore, model_fingerprint


def one(cli, *changes: str) -> str:
    (line,) = cli.errors(cli.but(*changes))
    return line


def test_a_folder_that_is_not_there(cli, tmp_path: Path) -> None:
    assert one(cli, f"--hf-checkpoint {tmp_path / 'none'}").startswith("M330")
    assert "hf download Qwen/Qwen3-0.6B" in one(cli, "--hf-checkpoint Qwen/Qwen3-0.6B")
    assert "it is a file" in one(cli, f"--hf-checkpoint {cli.prompts}")
    (line,) = cli.errors(cli.but(drop=["--hf-checkpoint"]))
    assert line.startswith("M208")


@pytest.mark.parametrize("content", [None, "{", "[1]"])
def test_no_usable_config(cli, checkpoint: Path, content: str | None) -> None:
    config = checkpoint / "config.json"
    config.unlink() if content is None else config.write_text(content)
    assert one(cli).startswith("M331")


def test_no_weights(cli, checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    line = one(cli)
    assert line.startswith(f"M332 {checkpoint}")
    assert "no *.safetensors" in line
    (checkpoint / "pytorch_model.bin").touch()
    assert "safe_serialization" in one(cli)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "0 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"\xff" * 40, "cut off"),
        (b"\x02\0\0\0\0\0\0\0{x", "no JSON"),
    ],
)
def test_damaged_weights(cli, checkpoint: Path, content: bytes, part: str) -> None:
    (checkpoint / "model.safetensors").write_bytes(content)
    line = one(cli)
    assert line.startswith("M332")
    assert part in line


def test_weights_that_were_cut_off(cli, checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    assert "is cut off" in one(cli)


def test_an_index_of_shards(cli, checkpoint: Path) -> None:
    index = checkpoint / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "model.safetensors"}}))
    assert not cli.errors(cli.valid)
    index.write_text(json.dumps({"weight_map": {"w": "model.safetensors", "v": "a.safetensors", "u": "b.safetensors"}}))
    assert "a.safetensors and 1 more" in one(cli)
    index.write_text("{}")
    assert "index cannot be read" in one(cli)


def test_no_tokenizer(cli, checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()
    assert one(cli).startswith("M333")
    (checkpoint / "vocab.json").touch()
    assert one(cli).startswith("M333")
    (checkpoint / "merges.txt").touch()
    assert not cli.errors(cli.valid)


def test_a_chat_template_where_one_is_asked_for(cli, checkpoint: Path) -> None:
    assert not cli.errors(cli.but("--apply-chat-template"))
    (checkpoint / "tokenizer_config.json").write_text("{}")
    assert not cli.errors(cli.valid)
    line = one(cli, "--apply-chat-template")
    assert line.startswith("M334")
    assert "--apply-chat-template (argument" in line
    (checkpoint / "chat_template.jinja").write_text("{{ messages }}")
    assert not cli.errors(cli.but("--apply-chat-template"))


def test_the_reference_model(cli, tmp_path: Path) -> None:
    assert not cli.errors(cli.but(f"--ref-load {cli.checkpoint}"))
    line = one(cli, f"--ref-load {tmp_path / 'none'}")
    assert line.startswith("M330")
    assert "--ref-load" in line


@pytest.mark.parametrize(
    ("changes", "fits"),
    [
        (["--rollout-max-prompt-len 32", "--rollout-max-response-len 32"], True),
        (["--rollout-max-prompt-len 33", "--rollout-max-response-len 32"], False),
        (["--rollout-max-response-len 65"], False),
        (["--rollout-max-context-len 64"], True),
        (["--rollout-max-context-len 65"], False),
        (["--rollout-max-context-len 64", "--rollout-max-prompt-len 63", "--rollout-max-response-len 63"], True),
        (["--rollout-max-context-len 64", "--rollout-max-prompt-len 64"], False),
    ],
)
def test_lengths_against_the_models_positions(cli, changes: list[str], fits: bool) -> None:
    lines = cli.errors(cli.but(*changes))
    assert [line[:4] for line in lines] == ([] if fits else ["M217"])


def test_a_context_length_bounds_the_prompt(cli) -> None:
    planned = cli.plan(cli.but("--rollout-max-context-len 60"))
    assert planned.config.peek(RolloutOptions).rollout_max_prompt_len == 59


def test_something_must_end_a_response(cli) -> None:
    (line,) = cli.errors(cli.but(drop=["--rollout-max-response-len"]))
    assert line.startswith("M208")
    planned = cli.plan(cli.but("--rollout-max-context-len 60", drop=["--rollout-max-response-len"]))
    assert planned.config.peek(RolloutOptions).rollout_max_response_len == 60
    assert not cli.errors(cli.but("--loss-type imitate", drop=["--rollout-max-response-len"]))


def test_evaluation_lengths(cli, write_rows) -> None:
    rows = write_rows({"input": "q", "label": "a"})
    arguments = [*cli.but("--eval-interval 1", "--eval-max-response-len 65"), "--eval-prompt-data", "a", str(rows)]
    (line,) = cli.errors(arguments)
    assert line.startswith("M217")
    assert "--eval-max-response-len 65" in line


def save(root: Path, rollout: int, model: Path) -> Path:
    store = StateStore(root)
    (store.begin(rollout) / "trainer").write_text("weights")
    path = store.commit(rollout, {"model_fingerprint": model_fingerprint(model)})
    store.close()
    return path


def test_resuming_takes_the_newest_whole_state(cli, tmp_path: Path) -> None:
    root = tmp_path / "state"
    older, newest = save(root, 0, cli.checkpoint), save(root, 1, cli.checkpoint)
    (root / "step_0000002").mkdir()
    planned = cli.plan(cli.but(f"--load {root}"))
    assert planned.plan.resume_from == newest
    assert any("passed over" in line and "step_0000002" in line for line in planned.warnings)
    (newest / "trainer").write_text("cut")
    assert cli.plan(cli.but(f"--load {root}")).plan.resume_from == older


@pytest.mark.parametrize("exists", [True, False])
def test_nothing_to_resume_is_a_notice(cli, tmp_path: Path, exists: bool) -> None:
    root = tmp_path / "state"
    if exists:
        root.mkdir()
    planned = cli.plan(cli.but(f"--load {root}"))
    assert planned.plan.resume_from is None
    assert any(str(root) in line and "starts fresh" in line for line in planned.warnings)


def test_a_state_of_another_model(cli, checkpoint: Path, tmp_path: Path) -> None:
    save(tmp_path / "state", 0, checkpoint)
    (checkpoint / "config.json").write_text('{"model_type": "other"}')
    line = one(cli, f"--load {tmp_path / 'state'}")
    assert line.startswith("M466")
    assert "another model" in line


def test_what_is_no_folder_of_states(cli, tmp_path: Path) -> None:
    assert one(cli, f"--load {cli.prompts}").startswith("M336")
    state = save(tmp_path / "state", 0, cli.checkpoint)
    line = one(cli, f"--load {state}")
    assert line.startswith("M336")
    assert f"give the folder that holds it: {tmp_path / 'state'}" in line


def test_a_finished_run_has_nothing_left(cli, tmp_path: Path) -> None:
    save(tmp_path / "state", 2, cli.checkpoint)
    planned = cli.plan(cli.but(f"--load {tmp_path / 'state'}"))
    assert any("nothing left" in line for line in planned.warnings)


def test_saving_where_an_earlier_run_did_is_a_notice(cli, tmp_path: Path) -> None:
    save(tmp_path / "state", 2, cli.checkpoint)
    arguments = cli.but(f"--save {tmp_path / 'state'}")
    assert any("--load" in line and "rollout 2" in line for line in cli.plan(arguments).warnings)

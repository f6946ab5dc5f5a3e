"""Samples on disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from miles_core.rollout import record
from miles_core.rollout.record import Recorder
from miles_core.samples import Sample, Scored, Status

BYTES = "a→é<b"
"""Tokens are the bytes of this text."""


def decode(ids: Sequence[int]) -> str:
    return bytes(ids).decode("utf-8", "replace")


def written(folder: Path, samples: Sequence[Sample], *dropped: list[Sample], **reasons: str) -> list[dict[str, object]]:
    recorder = Recorder(folder, decode, lambda prompts: [decode(ids) for ids in prompts])
    recorder.write("rollout_0", samples, dropped, {int(name[1:]): why for name, why in reasons.items()})
    return [json.loads(line) for line in (folder / "rollout_0.jsonl").read_text(encoding="utf-8").splitlines()]


def sample(text: str, **changes: object) -> Sample:
    ids = list(text.encode())
    made = {"prompt_ids": list(b"say"), "response_ids": ids, "response": text, "weight_versions": [(3, len(ids))]}
    return Sample(**{**made, "status": Status.COMPLETED, "reward": 1.0, "score": Scored(1.0), **changes})


def test_tokens_end_where_their_characters_do(tmp_path: Path) -> None:
    probabilities = [-0.12345, -1.0, -2.0, -3.0, -4.0, -5.0, 0.0, -0.0004]
    (row,) = written(tmp_path, [sample(BYTES, rollout_log_probs=probabilities)])
    # a, the three bytes of the arrow, the two of the letter, < and b.
    assert row["token_ends"] == [1, 1, 1, 2, 2, 3, 4, 5]
    assert row["log_probs"] == [-0.123, -1.0, -2.0, -3.0, -4.0, -5.0, 0.0, -0.0]
    assert (row["prompt"], row["response"], row["weight_versions"]) == ("say", BYTES, [[3, 8]])
    assert "dropped" not in row
    assert "loss_mask" not in row


def test_a_response_that_is_not_made_of_its_tokens_has_none_marked(tmp_path: Path) -> None:
    (row,) = written(tmp_path, [sample("abc", response="xyz", rollout_log_probs=[-1.0, -2.0, -3.0])])
    assert "token_ends" not in row
    assert row["log_probs"] == [-1.0, -2.0, -3.0]


def test_dropped_groups_say_why_and_come_last(tmp_path: Path) -> None:
    kept, lost = sample("kept", group_index=4), sample("lost", group_index=2)
    rows = written(tmp_path, [kept], [lost, lost], g2="zero_std_1.0")
    assert [(row["response"], row.get("dropped")) for row in rows] == [
        ("kept", None),
        ("lost", "zero_std_1.0"),
        ("lost", "zero_std_1.0"),
    ]


def test_masked_and_removed_samples_say_so(tmp_path: Path) -> None:
    (row,) = written(tmp_path, [sample("abcd", loss_mask=[1, 0, 0, 1], removed=True)])
    assert (row["loss_mask"], row["removed"]) == ("1001", True)


def test_files_are_bounded(tmp_path: Path) -> None:
    long = sample("x" * 3000, rollout_log_probs=[-1.0] * 3000)
    rows = written(tmp_path, [long] * 100, [long] * 50)
    assert len(rows) == record.SAMPLES_PER_FILE + record.DROPPED_PER_FILE
    counts = [len(row.get("log_probs", [])) for row in rows]
    assert max(counts) == record.TOKENS_PER_SAMPLE
    assert sum(counts) == record.TOKENS_PER_FILE
    assert sum(len(row.get("token_ends", [])) for row in rows) == record.TOKENS_PER_FILE


def test_long_texts_make_fewer_samples(tmp_path: Path) -> None:
    half = sample("x" * (record.CHARACTERS_PER_FILE // 2 - 10))
    assert len(written(tmp_path, [half] * 5)) == 2
    assert len(written(tmp_path, [sample("x" * (record.CHARACTERS_PER_FILE + 1))] * 5)) == 1

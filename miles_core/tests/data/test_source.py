"""Which prompt comes next: length limits, order over epochs, and going on from a saved place."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miles_core.data.source import Cursor, Keys, PromptSet, PromptSource
from miles_core.errors import UsageError

KEYS = Keys(label="label")


def rows(count: int) -> list[dict[str, object]]:
    return [{"input": f"q{i}", "label": str(i), "metadata": {"i": i}} for i in range(count)]


def test_a_sample_has_what_its_row_has(write, templated) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    prompts = PromptSet(write({**rows(1)[0], "tools": tools}), KEYS, templated)
    sample = prompts.sample(0)
    assert (sample.prompt, sample.label, sample.metadata) == ("q0", "0", {"i": 0, "tools": tools})
    assert templated.decode_all([sample.prompt_ids]) == ["<|im_start|>user\nq0<|im_end|>\n<|im_start|>assistant\n"]


def test_siblings_share_nothing_that_is_appended_to(write, plain) -> None:
    (first, second), _ = PromptSource(PromptSet(write(*rows(2)), KEYS, plain), shuffle=False, seed=0).next_groups(2, 2)
    first.prompt_ids.append(0)
    first.metadata["seen"] = True
    assert second.prompt_ids == plain.encode(["q0"])[0]
    assert second.metadata == {"i": 0}


def test_long_prompts_are_dropped_counted_and_never_cut(write, plain) -> None:
    prompts = PromptSet(write({"input": "four"}, {"input": "fives"}, {"input": "sixsix"}, {"input": "ok"}), Keys(), plain, 4)
    assert prompts.dropped == 2
    assert [prompts.sample(i).prompt for i in range(len(prompts))] == ["four", "ok"]
    assert [len(prompts.sample(i).prompt_ids) for i in range(2)] == [4, 2]


def test_the_limit_counts_the_template(write, templated) -> None:
    length = len(templated.encode([templated.render("q")])[0])
    path = write({"input": "q"}, {"input": "qq"})
    assert PromptSet(path, Keys(), templated, length).dropped == 1
    with pytest.raises(UsageError, match="M315") as caught:
        PromptSet(path, Keys(), templated, length - 1)
    assert f"shortest has {length}" in caught.value.why


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ({"label": "1"}, "M304"),
        ({"input": "q"}, "M304"),
        ({"input": 3, "label": "1"}, "M306"),
        ({"input": "q", "label": "1", "metadata": [1]}, "M306"),
        ({"input": [{"role": "user", "content": "q"}], "label": "1"}, "M314"),
    ],
)
def test_bad_rows_show_at_the_start(write, plain, row: dict[str, object], code: str) -> None:
    path = write(*rows(2), row)
    with pytest.raises(UsageError, match=code) as caught:
        PromptSet(path, KEYS, plain)
    assert caught.value.owner == f"{path}:3"


def test_a_prompt_that_went_through_a_template_shows_at_the_start(write, templated) -> None:
    with pytest.raises(UsageError, match="M312"):
        PromptSet(write(*rows(2), {"input": templated.render("q"), "label": "1"}), KEYS, templated)


@pytest.mark.parametrize("limit", [None, 8])
def test_a_prompt_without_tokens(write, plain, limit: int | None) -> None:
    path = write({"input": ""}, {"input": "q"})
    with pytest.raises(UsageError, match="M306") as caught:
        PromptSet(path, Keys(), plain, limit)
    assert caught.value.owner == f"{path}:1"


def test_an_epoch_is_followed_by_the_next() -> None:
    cursor = Cursor(3, shuffle=False, seed=0)
    assert cursor.take(2) + cursor.take(2) == [0, 1, 2, 0]
    assert cursor.take(7) == [1, 2, 0, 1, 2, 0, 1]


def test_every_epoch_has_an_order_of_its_own() -> None:
    cursor = Cursor(50, shuffle=True, seed=7)
    first, second = cursor.take(50), cursor.take(50)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second != list(range(50))
    assert Cursor(50, shuffle=True, seed=7).take(50) == first
    assert Cursor(50, shuffle=True, seed=8).take(50) != first


def test_the_global_generator_is_left_alone() -> None:
    random.seed(3)
    before = random.getstate()
    first = Cursor(20, shuffle=True, seed=1).take(45)
    assert random.getstate() == before
    random.seed(99)
    assert Cursor(20, shuffle=True, seed=1).take(45) == first


@settings(deadline=None)
@given(
    size=st.integers(1, 9),
    shuffle=st.booleans(),
    before=st.lists(st.integers(0, 20), max_size=4),
    after=st.lists(st.integers(0, 20), min_size=1, max_size=4),
)
def test_a_cursor_goes_on_from_its_state(size: int, shuffle: bool, before: list[int], after: list[int]) -> None:
    cursor = Cursor(size, shuffle=shuffle, seed=5)
    for count in before:
        cursor.take(count)
    other = Cursor(size, shuffle=shuffle, seed=5)
    other.load_state(json.loads(json.dumps(cursor.state())))
    assert [other.take(count) for count in after] == [cursor.take(count) for count in after]
    assert other.state() == cursor.state()


def test_a_source_goes_on_from_its_state(write, plain) -> None:
    path = write(*rows(5))
    source, other = (PromptSource(PromptSet(path, KEYS, plain), shuffle=True, seed=3) for _ in range(2))
    for count in (2, 4, 1):
        source.next_groups(count, 3)
        source.settle()
    other.load_state(json.loads(json.dumps(source.state())))
    assert other.next_groups(9, 2) == source.next_groups(9, 2)
    assert other.state() == source.state()


def test_prompts_given_back_come_first_under_their_numbers(write, plain) -> None:
    source = PromptSource(PromptSet(write(*rows(9)), KEYS, plain), shuffle=False, seed=0)
    first = source.next_groups(4, 2)
    # While a rollout runs, a saved state has what is out as given back.
    assert [place[1] for place in source.state()["returned"]] == [0, 1, 2, 3]
    source.settle([1, 3])
    other = PromptSource(PromptSet(write(*rows(9)), KEYS, plain), shuffle=False, seed=0)
    other.load_state(json.loads(json.dumps(source.state())))
    for each in (source, other):
        again = each.next_groups(3, 2)
        assert again[:2] == [first[1], first[3]]
        assert [s.prompt for s in again[2]] == ["q4", "q4"]
        assert [s.index for s in again[2]] == [8, 9]
        each.settle()
        assert each.state()["returned"] == []


def test_prompts_given_back_to_groups_of_another_size_get_new_numbers(write, plain) -> None:
    source = PromptSource(PromptSet(write(*rows(9)), KEYS, plain), shuffle=False, seed=0)
    source.next_groups(2, 2)
    source.settle([1])
    (group,) = source.next_groups(1, 3)
    assert [(s.prompt, s.index, s.group_index) for s in group] == [("q1", 4, 2), ("q1", 5, 2), ("q1", 6, 2)]


def test_samples_and_groups_are_numbered_on(write, plain) -> None:
    source = PromptSource(PromptSet(write(*rows(3)), KEYS, plain), shuffle=False, seed=0)
    groups = source.next_groups(2, 2) + source.next_groups(2, 2)
    assert [[s.index for s in group] for group in groups] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert [[s.group_index for s in group] for group in groups] == [[0, 0], [1, 1], [2, 2], [3, 3]]
    assert [group[0].prompt for group in groups] == ["q0", "q1", "q2", "q0"]


def test_a_state_of_other_data_is_refused(write, plain) -> None:
    source = PromptSource(PromptSet(write(*rows(3)), KEYS, plain), shuffle=False, seed=0)
    smaller = PromptSource(PromptSet(write(*rows(2), name="two.jsonl"), KEYS, plain), shuffle=False, seed=0)
    with pytest.raises(UsageError, match="M316"):
        smaller.load_state(source.state())

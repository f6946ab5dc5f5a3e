"""Samples from data: responses from labels, and from the assistant's turns alone."""

from __future__ import annotations

import json

import pytest

from miles_core.data.source import Keys
from miles_core.data.supervised import SupervisedSource
from miles_core.data.tokens import PromptTokenizer
from miles_core.errors import UsageError
from miles_core.samples import Sample, Status

KEYS = Keys(label="label")


def source(file: str, tokenizer: PromptTokenizer, *, templated: bool = True, keys: Keys = KEYS, **options) -> SupervisedSource:
    return SupervisedSource(file, keys, tokenizer, templated=templated, **{"shuffle": False, "seed": 0, **options})


def trained(tokenizer: PromptTokenizer, sample: Sample) -> str:
    """The text of the tokens that are trained on, ``|`` between stretches."""
    stretches: list[list[int]] = [[]]
    for token, mask in zip(sample.response_ids, sample.train_mask(), strict=True):
        if mask:
            stretches[-1].append(token)
        elif stretches[-1]:
            stretches.append([])
    return "|".join(tokenizer.decode_all([stretch for stretch in stretches if stretch]))


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_a_label_is_the_response_and_ends(write, templated) -> None:
    made = source(write({"input": "hi", "label": "ho"}, {"input": "hi", "label": 12}), templated)
    first, second = made.next_samples(2)
    assert templated.decode_all([first.prompt_ids]) == ["<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"]
    assert templated.decode_all([first.response_ids, second.response_ids]) == ["ho<|im_end|>", "12<|im_end|>"]
    assert first.train_mask() == [1, 1, 1]
    assert (first.status, first.response, first.rollout_log_probs) == (Status.COMPLETED, "ho", None)


def test_an_end_that_is_written_is_not_doubled(write, plain) -> None:
    sample = source(write({"input": "hi", "label": "ho<|im_end|>"}), plain, templated=False).next_samples(1)[0]
    assert plain.decode_all([sample.prompt_ids, sample.response_ids]) == ["hi", "ho<|im_end|>"]


def test_a_label_gets_no_beginning_token(write, save_tokenizer) -> None:
    tokenizer = PromptTokenizer(save_tokenizer(bos=True), apply_chat_template=False)
    sample = source(write({"input": "hi", "label": "ho"}), tokenizer, templated=False).next_samples(1)[0]
    assert tokenizer.decode_all([sample.tokens]) == ["<s>hiho<|im_end|>"]


@pytest.mark.parametrize("label", [None, True, ["ho"], {"a": 1}])
def test_a_label_that_is_no_response(write, templated, label: object) -> None:
    path = write({"input": "hi", "label": "ho"}, {"input": "hi", "label": label})
    with pytest.raises(UsageError, match="M306") as caught:
        source(path, templated)
    assert caught.value.owner == f"{path}:2"


def test_assistant_turns_alone_are_trained_on(write, templated) -> None:
    messages = [
        turn("system", "be kind"),
        turn("user", "hi"),
        turn("assistant", "ho"),
        turn("user", "why"),
        turn("user", "now"),
        turn("assistant", "so"),
    ]
    sample = source(write({"input": messages}), templated).next_samples(1)[0]
    whole = templated.template(messages, add_generation_prompt=False)
    assert templated.decode_all([sample.tokens]) == [whole]
    assert trained(templated, sample) == "ho<|im_end|>\n|so<|im_end|>\n"
    opening = "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert templated.decode_all([sample.prompt_ids]) == [opening]
    sample.check()


def test_rows_of_both_kinds_keep_their_order(write, templated) -> None:
    chat = [turn("user", "hi"), turn("assistant", "B")]
    file = write({"input": "hi", "label": "A"}, {"input": chat}, {"input": [turn("user", "hi")], "label": "C"})
    assert [sample.response for sample in source(file, templated).next_samples(3)] == ["A", "B", "C"]


def test_a_template_that_rewrites_earlier_turns_is_refused(write, save_tokenizer) -> None:
    template = "{{ messages | length }}{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    tokenizer = PromptTokenizer(save_tokenizer(template), apply_chat_template=True)
    path = write({"input": [turn("user", "hi"), turn("assistant", "ho")]})
    with pytest.raises(UsageError, match="M319") as caught:
        source(path, tokenizer)
    assert caught.value.owner == f"{path}:1"


def test_a_token_over_the_seam_is_split_where_sampling_splits_it(write, save_tokenizer) -> None:
    template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}={% else %}{{ m['content'] }};{% endif %}{% endfor %}"
    )
    tokenizer = PromptTokenizer(save_tokenizer(template, merged=("=>",)), apply_chat_template=True)
    sample = source(write({"input": [turn("user", "a"), turn("assistant", ">b")]}), tokenizer).next_samples(1)[0]
    assert tokenizer.decode_all([sample.prompt_ids, sample.response_ids]) == ["a=", ">b;"]
    assert sample.train_mask() == [1, 1, 1]


def test_messages_need_a_template(write, plain) -> None:
    with pytest.raises(UsageError, match="M314"):
        source(write({"input": [turn("user", "hi"), turn("assistant", "ho")]}), plain, templated=False)


def test_a_prompt_without_a_response_is_refused(write, templated) -> None:
    with pytest.raises(UsageError, match="M318"):
        source(write({"input": "hi"}), templated, keys=Keys())
    with pytest.raises(UsageError, match="M304"):
        source(write({"input": "hi"}), templated)


def test_rows_that_are_too_long_or_empty_are_counted(write, plain) -> None:
    path = write({"input": "hi", "label": "ho"}, {"input": "hi", "label": "longer"}, {"input": "hi", "label": ""})
    made = source(path, plain, templated=False, max_tokens=5)
    assert (len(made), made.dropped) == (1, 2)
    assert len(made.next_samples(1)[0].tokens) == 5
    with pytest.raises(UsageError, match="M317"):
        source(path, plain, templated=False, max_tokens=4)


def test_every_sample_is_a_group_of_its_own_and_goes_on_from_a_state(write, plain) -> None:
    path = write(*({"input": f"q{i}", "label": str(i)} for i in range(4)))
    first, second = (source(path, plain, templated=False, shuffle=True, seed=2) for _ in range(2))
    taken = first.next_samples(3) + first.next_samples(3)
    assert [s.index for s in taken] == [s.group_index for s in taken] == list(range(6))
    assert sorted(s.label for s in taken[:4]) == ["0", "1", "2", "3"]
    second.load_state(json.loads(json.dumps(first.state())))
    assert second.next_samples(5) == first.next_samples(5)

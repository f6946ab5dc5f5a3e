"""Prompts to ids: one template, one beginning token, nothing cut off."""

from __future__ import annotations

from pathlib import Path

import pytest

from miles_core.data.tokens import PromptTokenizer
from miles_core.errors import UsageError


def texts(tokenizer: PromptTokenizer, *prompts: object) -> list[str]:
    return tokenizer.decode_all(tokenizer.encode([tokenizer.render(prompt) for prompt in prompts]))


def test_the_template_is_applied_exactly_once(templated: PromptTokenizer) -> None:
    written = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert texts(templated, "hi") == [written]
    assert texts(templated, [{"role": "user", "content": "hi"}]) == [written]
    ids = templated.encode([templated.render("hi")])[0]
    assert ids.count(templated.tokenizer.convert_tokens_to_ids("<|im_start|>")) == 2


def test_without_a_template_text_is_the_prompt(plain: PromptTokenizer) -> None:
    assert texts(plain, "hi", "<|im_start|>user") == ["hi", "<|im_start|>user"]


def test_text_that_went_through_a_template_is_refused(templated: PromptTokenizer) -> None:
    with pytest.raises(UsageError, match="M312") as caught:
        templated.render(templated.render("hi"), place="f.jsonl:3")
    assert caught.value.owner == "f.jsonl:3"


def test_a_beginning_token_that_the_template_takes_from_the_tokenizer_tells_only_at_the_front(save_tokenizer) -> None:
    template = "{{ bos_token }}[{{ messages[0]['content'] }}]"
    tokenizer = PromptTokenizer(save_tokenizer(template, bos=True), apply_chat_template=True)
    assert texts(tokenizer, "strike <s>out") == ["<s>[strike <s>out]"]
    with pytest.raises(UsageError, match="M312"):
        tokenizer.render("<s>[hi]")


def test_the_beginning_token_is_never_doubled(save_tokenizer) -> None:
    folder = save_tokenizer("{{ bos_token }}{{ messages[0]['content'] }}", bos=True)
    assert texts(PromptTokenizer(folder, apply_chat_template=True), "hi") == ["<s>hi"]
    assert texts(PromptTokenizer(folder, apply_chat_template=False), "hi", "<s>hi") == ["<s>hi", "<s>hi"]


def test_a_prompt_is_not_ended(save_tokenizer) -> None:
    tokenizer = PromptTokenizer(save_tokenizer(bos=True, eos=True), apply_chat_template=False)
    assert texts(tokenizer, "hi", "turn<|im_end|>") == ["<s>hi", "<s>turn<|im_end|>"]


def test_template_options_reach_the_template(save_tokenizer) -> None:
    folder = save_tokenizer("{{ messages[0]['content'] }}{{ '!' if loud else '.' }}")
    tokenizer = PromptTokenizer(folder, apply_chat_template=True, template_options={"loud": True})
    assert texts(tokenizer, "hi") == ["hi!"]


def test_tools_reach_the_template(save_tokenizer) -> None:
    tokenizer = PromptTokenizer(save_tokenizer("{{ tools | length }}{{ messages[0]['content'] }}"), apply_chat_template=True)
    tool = {"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object", "properties": {}}}}
    assert tokenizer.render("hi", tools=[tool]) == "1hi"


def test_messages_need_a_template(plain: PromptTokenizer) -> None:
    with pytest.raises(UsageError, match="M314"):
        plain.render([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize("prompt", [3, None, {}, [], ["hi"], [{"content": "hi"}]])
def test_what_is_no_prompt(plain: PromptTokenizer, templated: PromptTokenizer, prompt: object) -> None:
    for tokenizer in (plain, templated):
        with pytest.raises(UsageError, match="M306"):
            tokenizer.check(prompt, "f.jsonl:1")


def test_a_template_that_refuses_is_named_with_the_row(save_tokenizer) -> None:
    tokenizer = PromptTokenizer(save_tokenizer("{{ raise_exception('no ' + messages[0]['role']) }}"), apply_chat_template=True)
    with pytest.raises(UsageError, match="M313") as caught:
        tokenizer.render("hi", place="f.jsonl:7")
    assert caught.value.owner == "f.jsonl:7"
    assert "no user" in caught.value.why


def test_no_template_where_one_is_asked_for(save_tokenizer) -> None:
    folder = save_tokenizer(None)
    with pytest.raises(UsageError, match="M311"):
        PromptTokenizer(folder, apply_chat_template=True)
    assert texts(PromptTokenizer(folder, apply_chat_template=False), "hi") == ["hi"]


@pytest.mark.parametrize("content", [None, "", "{}", "{", '{"version": "1.0"}'])
def test_no_usable_tokenizer(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}', encoding="utf-8")
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
        (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}', encoding="utf-8")
    with pytest.raises(UsageError, match="M310"):
        PromptTokenizer(tmp_path, apply_chat_template=False)


def test_no_texts_are_no_ids(plain: PromptTokenizer) -> None:
    assert plain.encode([]) == []

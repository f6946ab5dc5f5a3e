"""The text-to-token cache with tokenisers whose tokens are parts of characters, or depend on their neighbours."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from miles_core.router.radix import RadixTree
from miles_core.router.routing_capture import RoutingCapture
from miles_core.router.text_cache import TextCache


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte, and some for two: characters beyond ASCII are several tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate([*alphabet, "he", "Ġh"])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[("h", "e"), ("Ġ", "h")]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core)


def space_tokenizer() -> PreTrainedTokenizerFast:
    """Tokens that begin with a space, which the first of a text loses."""
    words = ["<unk>", "▁", "▁a", "▁b", "a", "b", "h"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")


def repeat_tokenizer() -> PreTrainedTokenizerFast:
    """Tokens that say nothing behind their like."""
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<unk>", "a", "b", "h"])}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.CTC("<pad>", "|", cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")


TOKENIZERS = {"bytes": byte_tokenizer(), "spaces": space_tokenizer(), "repeats": repeat_tokenizer()}


def answer_of(output: Sequence[int], version: int = 3, **further: Any) -> dict[str, Any]:
    pairs = [(-1.0 - i, token, None) for i, token in enumerate(output)]
    return {"meta_info": {"weight_version": str(version), "output_token_logprobs": pairs, **further}}


def remember(cache: TextCache, prompt: list[int], answer: dict[str, Any]) -> None:
    cache.note(prompt, answer)
    cache.tokens("")


def check(kind: str, prompt: list[int], output: list[int]) -> None:
    tokenizer = TOKENIZERS[kind]
    cache = TextCache(tokenizer)
    remember(cache, prompt, answer_of(output))
    text = tokenizer.decode([*prompt, *output], clean_up_tokenization_spaces=False)
    trace = cache.tree.find(text)
    # Whatever is found is a beginning of what was there, with what belongs to it.
    known = len(trace.ids)
    assert list(trace.ids) == [*prompt, *output][:known]
    log_probs = [*[0.0] * len(prompt), *(-1.0 - i for i in range(len(output)))]
    assert list(trace.log_probs) == log_probs[:known]
    assert list(trace.mask) == [*[0] * len(prompt), *[1] * len(output)][:known]
    if "\ufffd" not in text:
        assert known == len(prompt) + len(output) or prompt_ends_within(tokenizer, prompt)
        ids, *_ = cache.tokens(text + "he")
        assert ids[:known] == list(trace.ids)


def prompt_ends_within(tokenizer: Any, prompt: list[int]) -> bool:
    """Whether the prompt ends in the midst of a character, which then is nobody's."""
    return tokenizer.decode(prompt).endswith("\ufffd")


@settings(max_examples=150, deadline=None)
@given(st.text("he aä€😀", min_size=1, max_size=12), st.text("he aä€😀", min_size=1, max_size=12))
def test_tokens_of_texts_are_found_again(prompt: str, output: str) -> None:
    tokenizer = TOKENIZERS["bytes"]
    check("bytes", tokenizer.encode(prompt), tokenizer.encode(output))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 257), min_size=1, max_size=10), st.lists(st.integers(0, 257), min_size=1, max_size=10))
def test_any_tokens_at_all(prompt: list[int], output: list[int]) -> None:
    check("bytes", prompt, output)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(2, 6), min_size=1, max_size=8), st.lists(st.integers(1, 6), min_size=1, max_size=8))
def test_tokens_whose_text_depends_on_their_place(prompt: list[int], output: list[int]) -> None:
    cache = TextCache(TOKENIZERS["spaces"])
    remember(cache, prompt, answer_of(output))
    text = TOKENIZERS["spaces"].decode([*prompt, *output], clean_up_tokenization_spaces=False)
    trace = cache.tree.find(text)
    assert list(trace.ids) == [*prompt, *output][: len(trace.ids)]
    assert trace.length == len(text) or text[trace.length :].strip() == ""


def test_tokens_whose_text_depends_on_their_neighbours() -> None:
    tokenizer = TOKENIZERS["repeats"]
    assert tokenizer.decode([1, 1, 2, 2, 1]) == "aba"
    cache = TextCache(tokenizer)
    remember(cache, [3, 1, 1, 2], answer_of([1, 2, 2, 1]))
    assert cache.tree.find("hababa").ids == (3, 1, 1, 2, 1, 2, 2, 1)


def test_without_a_text_answers_wait_and_are_bounded() -> None:
    tokenizer = TOKENIZERS["bytes"]
    cache = TextCache(tokenizer, RadixTree(20))
    for letter in "abcdefgh":
        cache.note(tokenizer.encode(letter * 3), answer_of(tokenizer.encode(letter)))
    # Nobody came with a text so far: nothing was decoded, and no more is kept than the tree holds.
    assert (cache.tree.tokens, cache._waiting) == (0, 20)
    ids, _, mask, _ = cache.tokens("hhhh")
    assert (ids, mask) == (tokenizer.encode("hhhh"), [0, 0, 0, 1])
    cache.note(tokenizer.encode("zz"), answer_of(tokenizer.encode("z"), 4))
    assert cache.tokens("zzz")[3] == [4, 4, 4]
    assert not cache._noted


def test_what_was_tokenised_in_another_way_is_not_mistaken() -> None:
    tokenizer = TOKENIZERS["bytes"]
    cache = TextCache(tokenizer)
    apart = [tokenizer.convert_tokens_to_ids(letter) for letter in "he"]
    assert tokenizer.encode("he") != apart
    remember(cache, tokenizer.encode("a"), answer_of(apart))
    ids, log_probs, mask, versions = cache.tokens("ahehe")
    assert ids == [*tokenizer.encode("a"), *apart, *tokenizer.encode("he")]
    assert (log_probs, mask, versions) == ([0.0, -1.0, -2.0, 0.0], [0, 1, 1, 0], [3, 3, 3, -1])


def test_new_weights_drop_what_is_too_old() -> None:
    cache = TextCache(TOKENIZERS["bytes"], RadixTree(lag=2))
    prompt = TOKENIZERS["bytes"].encode("h")
    for version in range(1, 5):
        remember(cache, [*prompt, version], answer_of([version], version))
    assert [bool(cache.tree.find("h" + TOKENIZERS["bytes"].decode([version])).length > 1) for version in range(1, 5)] == [
        False,
        False,
        True,
        True,
    ]
    # Versions come as text, and one that is none does no harm.
    cache.note(prompt, {"meta_info": {"weight_version": "default", "output_token_logprobs": []}})


def routes(count: int, first: int = 0) -> str:
    return base64.b64encode(b"".join((first + i).to_bytes(4, "little") for i in range(count))).decode()


def test_captured_routes_are_bounded_and_checked() -> None:
    capture = RoutingCapture()
    capture.keep([5, 6], answer_of([7])["meta_info"], routes(2))
    assert capture.find([5, 6, 7]) == {"routed_experts": routes(2), "routed_tokens": 2}
    # The next turn knows more, and newer weights replace what older ones chose.
    capture.keep([5, 6, 7], answer_of([8, 9], 4)["meta_info"], routes(4, 10))
    assert capture.find([5, 6, 7, 8, 9]) == {"routed_experts": routes(4, 10), "routed_tokens": 4}
    with pytest.raises(ValueError, match="8 bytes of routes for 4 tokens"):
        capture.keep([5, 6], answer_of([7, 8])["meta_info"], routes(2))
    with pytest.raises(ValueError, match="token ids"):
        capture.find(["a"])
    small = RoutingCapture(megabytes=1)
    for start in range(0, 60_000, 500):
        small.keep(list(range(start, start + 500)), answer_of([1])["meta_info"], routes(500))
    assert small.tree is not None
    assert 2000 < small.tree.tokens <= (1 << 20) // 304

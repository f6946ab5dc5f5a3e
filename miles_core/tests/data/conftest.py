"""Character tokenizers with ChatML, and data files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from miles_core.data.tokens import PromptTokenizer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPECIAL = ["<|pad|>", "<s>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture
def chatml() -> str:
    return CHATML


@pytest.fixture
def save_tokenizer(tmp_path: Path) -> Callable[..., Path]:
    """Saves a tokenizer of single characters.

    ``bos`` and ``eos`` have it put ``<s>`` before and ``<|im_end|>`` behind every text; ``merged`` are texts that are one token.
    """

    def save(template: str | None = CHATML, *, bos: bool = False, eos: bool = False, merged: tuple[str, ...] = ()) -> Path:
        words = [*SPECIAL, "user", "assistant", "system", *merged, *map(chr, range(32, 127)), "\n"]
        fast = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<|pad|>"))
        fast.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        fast.decoder = decoders.Fuse()
        fast.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIAL])
        fast.add_tokens([AddedToken(word, normalized=False) for word in ("user", "assistant", "system", *merged)])
        if bos or eos:
            single = f"{'<s> ' if bos else ''}$A{' <|im_end|>' if eos else ''}"
            ids = [(word, words.index(word)) for word in ("<s>", "<|im_end|>")]
            fast.post_processor = processors.TemplateProcessing(single=single, pair=f"{single} $B", special_tokens=ids)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=fast, pad_token="<|pad|>", eos_token="<|im_end|>", bos_token="<s>" if bos else None
        )
        tokenizer.chat_template = template
        folder = tmp_path / "tokenizer"
        tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def plain(save_tokenizer: Callable[..., Path]) -> PromptTokenizer:
    """Texts are prompts as they are."""
    return PromptTokenizer(save_tokenizer(), apply_chat_template=False)


@pytest.fixture
def templated(save_tokenizer: Callable[..., Path]) -> PromptTokenizer:
    """Prompts go through ChatML."""
    return PromptTokenizer(save_tokenizer(), apply_chat_template=True)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Writes a JSON Lines file; a string row is written as it is."""

    def write_rows(*rows: object, name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
        return str(path)

    return write_rows

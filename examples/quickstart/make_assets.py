"""Write a tiny model with random weights, and a task for it to learn: sort five digits.

The model is a Qwen3 of half a million parameters (``--size`` has larger ones) with one token per character and a ChatML template.
``sort 73051`` is to be answered by ``01357``. Prompts for fine-tuning, for GRPO and for evaluation are different ones.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging

PAD, UNKNOWN, START, END = "<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = (PAD, UNKNOWN, START, END)
ROLES = ("system", "user", "assistant")
TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
VOCABULARY = 128
DIGITS = 5
COUNTS = {"sft": 8192, "train": 8192, "heldout": 256}
EVALUATION = """\
# Two views of the same held-out prompts: as the policy samples, and its likeliest answer.
eval:
  defaults:
    input_key: question
    label_key: answer
    n_samples_per_eval_prompt: 1
  datasets:
    - name: heldout_sampled
      path: {path}
      temperature: 1.0
    - name: heldout_greedy
      path: {path}
      temperature: 0.0
"""


@dataclass(frozen=True)
class Size:
    """Shape of a model."""

    hidden: int
    layers: int
    feed_forward: int
    heads: int
    key_value_heads: int


SIZES = {
    "xs": Size(128, 2, 512, 4, 2),
    "1m": Size(128, 4, 384, 4, 2),
    "3m": Size(192, 6, 576, 6, 2),
    "5m": Size(256, 6, 768, 8, 4),
    "20m": Size(384, 12, 1152, 12, 4),
}


def main() -> None:
    """Write everything into the folder given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and of the prompts")
    parser.add_argument("--size", choices=sorted(SIZES), default="xs", help="size of the model")
    parser.add_argument("--head-dim", type=int, default=32, help="dimensions of a head of attention")
    args = parser.parse_args()
    logging.disable_progress_bar()
    args.out.mkdir(parents=True, exist_ok=True)
    parameters = write_model(args.out / "model", SIZES[args.size], args.seed, args.head_dim)
    prompts = draw_prompts(sum(COUNTS.values()), args.seed)
    start = 0
    for name, count in COUNTS.items():
        write_rows(args.out / f"{name}.jsonl", prompts[start : start + count])
        start += count
    heldout = json.dumps(str((args.out / "heldout.jsonl").resolve()))
    (args.out / "eval.yaml").write_text(EVALUATION.format(path=heldout), encoding="utf-8")
    counts = ", ".join(f"{count} {name}" for name, count in COUNTS.items())
    print(f"wrote {args.out}: a model of {parameters:,} parameters, and prompts ({counts})")


def write_model(folder: Path, size: Size, seed: int, head_dim: int = 32) -> int:
    """Write checkpoint and tokenizer; returns the number of parameters."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=size.hidden,
        intermediate_size=size.feed_forward,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_value_heads,
        head_dim=head_dim,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=True, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.num_parameters()


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per printable ASCII character, and one for each role of a chat."""
    characters = [chr(code) for code in range(32, 127)] + ["\n"]
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *ROLES, *characters))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    core.add_tokens([AddedToken(role, normalized=False) for role in ROLES])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token=PAD, eos_token=END, unk_token=UNKNOWN)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def draw_prompts(count: int, seed: int) -> list[str]:
    """Different strings of digits."""
    numbers = random.Random(seed).sample(range(10**DIGITS), count)
    return [f"{number:0{DIGITS}d}" for number in numbers]


def write_rows(path: Path, prompts: Iterable[str]) -> None:
    """One JSON object per line, with the keys ``question`` and ``answer``."""
    rows = ({"question": f"sort {digits}", "answer": "".join(sorted(digits))} for digits in prompts)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()

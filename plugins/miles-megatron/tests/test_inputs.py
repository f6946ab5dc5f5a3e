"""``miles run --backend megatron`` with input that cannot be: one line each, exit code 2, and nothing started."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from miles_megatron.architecture import architecture
from miles_megatron.tensors import problems, shapes_of, value_shapes

from miles_core.errors import UsageError

SIZES = {
    "model_type": "qwen3",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "vocab_size": 20,
    "max_position_embeddings": 64,
}
EXPERTS = {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 6}
HEAVY = ("torch", "ray", "transformers", "megatron")
PROBE = f"""\
import sys
from miles_core.cli.main import main
code = main(sys.argv[1:])
print("imported:", sorted({{name.partition(".")[0] for name in sys.modules}} & set({HEAVY!r})))
sys.exit(code)
"""


def write_weights(folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A safetensors file of zeros."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    head = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + bytes(end))


@pytest.fixture
def miles_run(tmp_path: Path):
    """``miles run`` with this model, these weights and arguments, which is to end with an exit code before anything starts."""

    def run(
        *arguments: str, code: int = 2, model: dict | None = None, weights: dict | None = None
    ) -> subprocess.CompletedProcess[str]:
        config = {**SIZES, **(model or {})}
        folder = tmp_path / "model"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
        try:
            shapes = dict(shapes_of(architecture(config)))
        except UsageError:
            shapes = {"w": (2,)}
        write_weights(folder, {name: shape for name, shape in {**shapes, **(weights or {})}.items() if shape})
        (tmp_path / "prompts.jsonl").write_text('{"question": "1", "answer": "1"}\n', encoding="utf-8")
        command = [
            *("run", "--train-backend", "megatron", "--engine", "transformers", "--algo", "grpo", "--rm-type", "exact"),
            *("--hf-checkpoint", str(folder), "--prompt-data", str(tmp_path / "prompts.jsonl"), "--input-key", "question"),
            *("--label-key", "answer", "--rollout-batch-size", "8", "--n-samples-per-prompt", "2", "--num-rollout", "1"),
            *("--rollout-max-response-len", "4"),
            *("--colocate", "--device", "cpu", "--run-dir", str(tmp_path / "run"), *arguments),
        ]
        done = subprocess.run(
            [sys.executable, "-c", PROBE, *command], capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert done.stdout.splitlines()[-1] == "imported: []"
        assert not (tmp_path / "run").exists()
        return done

    return run


@pytest.fixture
def say(miles_run):
    """The lines of the backend in what such a run says; core says more, as of processors that are missing."""

    def lines(*arguments: str, **changes: dict) -> list[str]:
        return [line for line in miles_run(*arguments, **changes).stderr.splitlines() if " miles-megatron: " in line]

    return lines


def test_what_works_is_planned(miles_run):
    options = [
        *("--actor-num-gpus-per-node", "1", "--model-name", "qwen3", "--megatron-to-hf-mode", "raw", "--recompute-loss-function"),
        *("--qkv-format", "bshd", "--micro-batch-size", "2", "--log-probs-chunk-size", "64", "--train-env-vars", '{"A": "1"}'),
        *("--train-memory-margin-bytes", "5", "--disable-weights-backuper", "--distributed-backend", "gloo", "--optimizer", "sgd"),
        *("--recompute-granularity", "full", "--recompute-method", "uniform", "--recompute-num-layers", "3"),
    ]
    done = miles_run("--dry-run", *options, code=0)
    assert "backend    megatron" in done.stdout
    assert "M2" not in done.stderr


def test_what_only_the_other_backend_has_is_refused(miles_run):
    done = miles_run("--actor-num-gpus-per-node", "1", "--true-on-policy-mode")
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("M"))
    assert line.startswith("M278 miles-megatron")


def test_everything_at_once_is_a_line_each(say):
    sizes = ("--tensor-model-parallel-size", "3", "--pipeline-model-parallel-size", "2", "--context-parallel-size", "2")
    lines = say("--actor-num-gpus-per-node", "8", *sizes, "--qkv-format", "bshd", "--micro-batch-size", "2")
    assert sorted(line[:4] for line in lines) == ["M550"] * 4 + ["M551"]
    for said in (
        "--context-parallel-size 2 contradicts --qkv-format bshd",
        "8 ranks of the actor do not divide into parts of 12",
        "does not divide the model's 4 attention heads",
        "does not divide the model's 2 key-value heads",
        "does not divide the model's 3 layers",
    ):
        assert sum(said in line for line in lines) == 1, (said, lines)
    assert all(". Do: " in line for line in lines)


def test_a_model_that_is_not_built_is_answered_with_those_that_are(say):
    (line,) = say("--actor-num-gpus-per-node", "1", model={"model_type": "gemma2"})
    assert line.startswith("M345 miles-megatron")
    assert "gemma2" in line
    assert "llama, mimo, qwen2, qwen3, qwen3_moe" in line
    assert "--backend fsdp" in line


def test_weights_of_another_model_are_found_by_their_headers(say):
    changes = {"model.norm.weight": None, "model.odd.weight": (3,), "model.layers.2.mlp.up_proj.weight": (25, 16)}
    lines = say("--actor-num-gpus-per-node", "1", weights=changes)
    assert [line[:4] for line in lines] == ["M342", "M342", "M343"]
    for line, name in zip(lines, changes, strict=True):
        assert name in line


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("headless", [True, False])
def test_a_vocabulary_head_may_be_missing_where_nobody_needs_it(tied, headless):
    built = architecture({**SIZES, "tie_word_embeddings": tied})
    stored = dict(shapes_of(built))
    assert list(problems(built, stored, Path("folder"), headless=headless)) == []
    del stored["lm_head.weight"]
    stored |= value_shapes(built)
    found = [problem.code for problem in problems(built, stored, Path("folder"), headless=headless)]
    assert found == ([] if tied or headless else ["M342"])


def test_experts_that_do_not_divide(say):
    sizes = ("--expert-model-parallel-size", "3", "--expert-tensor-parallel-size", "4")
    lines = say("--actor-num-gpus-per-node", "12", *sizes, model=EXPERTS)
    assert [line[:4] for line in lines] == ["M550", "M550"]
    assert "does not divide the model's 4 experts" in lines[0]
    assert "--expert-tensor-parallel-size 4 does not fit" in lines[1]
    assert "6 hidden units of an expert" in lines[1]


@pytest.mark.parametrize(
    ("said", "model"),
    [
        ("num_attention_heads of its config.json is missing", {"num_attention_heads": None}),
        ("num_hidden_layers of its config.json is '3'", {"num_hidden_layers": "3"}),
        ("num_key_value_heads of its config.json is 3, and does not divide 4", {"num_key_value_heads": 3}),
        ("rms_norm_eps of its config.json is 'x'", {"rms_norm_eps": "x"}),
        ("num_experts of its config.json is missing", {"model_type": "qwen3_moe"}),
        ("moe_intermediate_size of its config.json is missing", {**EXPERTS, "moe_intermediate_size": None}),
        ("rope_scaling of its config.json is no object", {"rope_scaling": 5}),
        ("factor of its config.json is missing", {"rope_scaling": {"type": "linear"}}),
        ("rotary angles are scaled by yarn", {"rope_scaling": {"type": "yarn", "factor": 2.0}}),
        ("rotary angles are scaled by llama3", {"rope_scaling": {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 2.0}}),
        ("its attention's output has a bias", {"attention_bias": True}),
        ("its attention's output has a bias", {"model_type": "llama", "attention_bias": True}),
        ("its MLPs have biases", {"model_type": "llama", "mlp_bias": True}),
        ("its activation is gelu", {"hidden_act": "gelu"}),
        ("it has sliding windows", {"use_sliding_window": True, "sliding_window": 8}),
    ],
)
def test_configs_of_models_that_are_not_built(said, model):
    with pytest.raises(UsageError, match="M345 ") as caught:
        architecture({**SIZES, **model})
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_constants_come_from_either_way_to_write_a_config():
    older = {"rope_theta": 7.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    newer = {"rope_parameters": {"rope_type": "linear", "rope_theta": 7.0, "factor": 2.0}}
    one, other = (architecture({**SIZES, **each}) for each in (older, newer))
    assert one == other
    assert (one.rope_theta, one.rope_interpolation, one.rope_factor, one.head_dim) == (7.0, 2.0, None, 4)
    assert architecture({**SIZES, **EXPERTS}) == architecture({**SIZES, **EXPERTS, "num_experts": None, "num_local_experts": 4})

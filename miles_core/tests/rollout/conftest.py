"""An engine that answers at once, over HTTP or in process, and real plans of runs against it."""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from miles_core.options import Config
from miles_core.options.resolve import resolve
from miles_core.runtime.checks.placement import Machine
from miles_core.runtime.plan import RunPlan
from miles_core.runtime.planning import plan_run
from miles_core.samples import FinishReason, GenerateRequest, GenerateResult, Sample, Score
from miles_core.serving import ServerThread, engine_app

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPECIAL = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
Answer = Callable[[str, int], str]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An HF directory with a config, one small tensor and a character tokenizer with ChatML."""
    folder = tmp_path_factory.mktemp("model")
    words = [*SPECIAL, *map(chr, range(32, 127)), "\n"]
    fast = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<|pad|>"))
    fast.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    fast.decoder = decoders.Fuse()
    fast.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="<|pad|>", eos_token="<|im_end|>")
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    config = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "vocab_size": len(words)}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    return folder


class Oracle:
    """Answers a prompt's text by a function of it and the sampling seed, cut at the limit on new tokens."""

    def __init__(self, checkpoint: Path, answer: Answer) -> None:
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(str(checkpoint))
        self.answer = answer
        self.version = 3
        self.batches: list[list[GenerateRequest]] = []
        self._texts: dict[tuple[int, ...], str] = {}

    def results(self, requests: Sequence[GenerateRequest]) -> Iterator[GenerateResult]:
        """In reverse, since an engine answers in any order."""
        self.batches.append(list(requests))
        end = self.tokenizer.eos_token_id
        for request in reversed(requests):
            prompt = tuple(request.input_ids)
            if prompt not in self._texts:
                self._texts[prompt] = self.tokenizer.decode(list(prompt))
            text = self.answer(self._texts[prompt], request.params.sampling_seed or 0)
            stop = min((i + len(s) for s in request.params.stop if (i := text.find(s)) >= 0), default=None)
            ids = self.tokenizer.encode(text[:stop], add_special_tokens=False)
            whole = ids if stop is not None else [*ids, end]
            ids = whole[: request.params.max_new_tokens]
            reason = FinishReason.STOP if len(ids) == len(whole) else FinishReason.LENGTH
            said = text[:stop] + "<|im_end|>" * (stop is None) if reason is FinishReason.STOP else text[: len(ids)]
            log_probs = tuple(-0.5 for _ in ids)
            yield GenerateResult(request.rid, tuple(ids), log_probs, reason, self.version, said, len(prompt))


class InstantClient:
    """An oracle in process, behind the client's own methods."""

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle
        self.batch_stream = True
        self.urls = ("http://127.0.0.1:30000",)
        self.closed = 0

    async def generate(self, requests: Sequence[GenerateRequest]) -> AsyncGenerator[GenerateResult, None]:
        try:
            for result in self.oracle.results(requests):
                yield result
        finally:
            self.closed += 1

    async def close(self) -> None:
        pass


class OracleService:
    """An oracle as an engine's service; nothing but generation is asked of it."""

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle

    async def submit(self, requests: Sequence[GenerateRequest]) -> AsyncGenerator[Sequence[GenerateResult], None]:
        for result in self.oracle.results(requests):
            yield [result]


@pytest.fixture
def make_client(checkpoint: Path) -> Callable[[Answer], InstantClient]:
    return lambda answer: InstantClient(Oracle(checkpoint, answer))


@pytest.fixture
def serve(checkpoint: Path) -> Iterator[Callable[[Answer], tuple[Oracle, str]]]:
    """Serves oracles over HTTP; gives each with its URL."""
    threads: list[ServerThread] = []

    def start(answer: Answer) -> tuple[Oracle, str]:
        oracle = Oracle(checkpoint, answer)
        threads.append(ServerThread(engine_app(OracleService(oracle))))  # type: ignore[arg-type]
        return oracle, threads[-1].start()

    yield start
    for thread in threads:
        thread.stop()


@dataclass
class Judge:
    """A reward: what ``verdict`` says of each sample. An exception of it is raised."""

    verdict: Callable[[Sample], Score | Exception]
    seen: list[int] = field(default_factory=list)

    async def score(self, samples: Sequence[Sample]) -> list[Score]:
        self.seen += [sample.index for sample in samples]
        scores: list[Score] = []
        for sample in samples:
            verdict = self.verdict(sample)
            if isinstance(verdict, Exception):
                raise verdict
            scores.append(verdict)
        return scores

    async def close(self) -> None:
        pass


@pytest.fixture
def judge() -> type[Judge]:
    return Judge


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Writes a JSON Lines file."""

    def write_rows(*rows: object, name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write_rows


@pytest.fixture
def plan(checkpoint: Path, tmp_path: Path) -> Callable[..., tuple[Config, RunPlan]]:
    """The real configuration and plan of a command line."""

    def make(*arguments: object) -> tuple[Config, RunPlan]:
        for module in ("miles_algos", "miles_rewards", "miles_fsdp", "miles_transformers"):
            pytest.importorskip(module)
        base = ["--backend", "fsdp", "--engine", "transformers", "--hf-checkpoint", checkpoint, "--num-rollout", 4, "--colocate"]
        base += ["--actor-num-gpus-per-node", 1]
        words = [str(word) for word in [*base, "--run-dir", tmp_path / "run", *arguments]]
        planned = plan_run(resolve(words, environment={}), Machine(cpus=8, gpus=0))
        return planned.config, planned.require()

    return make

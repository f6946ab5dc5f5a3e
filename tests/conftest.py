"""What the end-to-end tests share: one tiny checkpoint with its task, and one Ray cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RUN_SECONDS = 240


@dataclass(frozen=True)
class Task:
    """The quickstart's task: a random checkpoint, prompts and held-out prompts."""

    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def train(self) -> Path:
        return self.folder / "train.jsonl"

    @property
    def heldout(self) -> Path:
        return self.folder / "heldout.jsonl"

    @property
    def sft(self) -> Path:
        return self.folder / "sft.jsonl"

    def arguments(self, trainers: int = 1, engines: int | None = None, **options: object) -> list[str]:
        """Arguments of a small GRPO run, 8 prompts x 4 samples. ``options`` replace or add: True is a flag, None leaves out."""
        chosen: dict[str, object] = {
            "backend": "fsdp",
            "engine": "transformers",
            "algo": "grpo",
            "custom_rm_path": f"{ROOT / 'tests' / 'graded_reward.py'}:digits",
            "hf_checkpoint": self.model,
            "prompt_data": self.train,
            "input_key": "question",
            "label_key": "answer",
            "apply_chat_template": True,
            "rollout_batch_size": 8,
            "n_samples_per_prompt": 4,
            "rollout_max_response_len": 7,
            "lr": "1e-3",
            "use_dynamic_batch_size": True,
            "max_tokens_per_gpu": 4096,
            "attn_implementation": "sdpa",
            "actor_num_gpus_per_node": trainers,
            "colocate": engines is None,
            "rollout_num_gpus": engines,
        }
        arguments = []
        for name, value in {**chosen, **options}.items():
            flag = "--" + name.replace("_", "-")
            if value is None or value is False:
                continue
            arguments += [flag] if value is True else [flag, str(value)]
        return arguments


@pytest.fixture(scope="session")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    folder = tmp_path_factory.mktemp("task")
    subprocess.run([sys.executable, str(ROOT / "examples/quickstart/make_assets.py"), str(folder), "--seed", "0"], check=True)
    return Task(folder)


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """Address of a Ray cluster that the runs of this session share."""
    import ray

    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    context = ray.init(
        address="local",
        num_cpus=4,
        num_gpus=0,
        include_dashboard=False,
        object_store_memory=256 * 1024**2,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield context.address_info["gcs_address"]
    ray.shutdown()


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def miles() -> Run:
    """Runs ``miles`` with arguments, and fails with its output when the exit code is not the one expected."""

    def run(
        *arguments: object, code: int = 0, timeout: float = RUN_SECONDS, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "miles_core.cli.main", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env={**os.environ, **environment},
        )
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
        return done

    return run


@pytest.fixture
def metrics() -> Callable[[Path], dict[str, list[tuple[int, float]]]]:
    """Reads the metrics of a run folder: name to ``(step, value)``."""

    def read(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
        found: dict[str, list[tuple[int, float]]] = {}
        for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            for name, value in row.items():
                if "/" in name:
                    found.setdefault(name, []).append((row["step"], value))
        return found

    return read


@pytest.fixture(scope="session")
def gsm8k() -> Path:
    """GSM8K's training questions."""
    folder = os.environ.get("MILES_TEST_DATA")
    if not folder:
        pytest.skip("MILES_TEST_DATA names no folder of data sets")
    return Path(folder) / "gsm8k" / "train.jsonl"

"""Samples on disk, for people to look at."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from miles_core.samples import Sample, Scored

SAMPLES_PER_FILE = 64


def describe(sample: Sample, prompt: str) -> dict[str, Any]:
    """One sample as plain JSON."""
    detail = getattr(sample.score, "detail", "") if sample.score is not None else ""
    return {
        "index": sample.index,
        "group": sample.group_index,
        "prompt": prompt,
        "response": sample.response,
        "label": sample.label,
        "reward": sample.reward,
        "graded": isinstance(sample.score, Scored),
        "detail": detail,
        "status": str(sample.status),
        "response_tokens": sample.response_length,
        "weight_versions": sample.weight_versions,
    }


def write_samples(folder: Path, name: str, samples: Sequence[dict[str, Any]]) -> None:
    """Write ``<folder>/<name>.jsonl``; a name that is no file name is made one."""
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^\w.+=@-]", "_", name)
    lines = [json.dumps(sample, ensure_ascii=False, default=str) for sample in samples]
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8", errors="backslashreplace")

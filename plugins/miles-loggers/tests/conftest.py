"""Options of a run that logs."""

from __future__ import annotations

import pytest

FIRST = {"train": 0, "rollout": 0, "eval": 0}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the shell decides a test."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "TENSORBOARD_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def first() -> dict[str, int]:
    """The first steps of a run that begins."""
    return dict(FIRST)

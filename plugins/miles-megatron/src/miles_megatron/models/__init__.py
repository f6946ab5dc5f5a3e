"""Models of megatron-core from HF configs."""

from __future__ import annotations

from miles_megatron.architecture import Architecture, architecture
from miles_megatron.models.chunks import build_chunks

__all__ = ["Architecture", "architecture", "build_chunks"]

"""Models of megatron-core from HF configs."""

from __future__ import annotations

from miles_megatron.architecture import Architecture, architecture
from miles_megatron.models.chunks import add_mtp_layers, build_chunks

__all__ = ["Architecture", "add_mtp_layers", "architecture", "build_chunks"]

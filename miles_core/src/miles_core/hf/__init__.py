"""Directories in Hugging Face's format: reading the weights of one, and writing one. Imports torch."""

from __future__ import annotations

from miles_core.hf.families import register_families
from miles_core.hf.folder import write_hf
from miles_core.hf.weights import HfWeights

__all__ = ["HfWeights", "register_families", "write_hf"]

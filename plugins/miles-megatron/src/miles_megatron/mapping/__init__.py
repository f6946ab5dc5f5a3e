"""Weights between Hugging Face's names and layout and the shards of megatron-core's models."""

from __future__ import annotations

from miles_megatron.mapping.export import export_hf, export_tensors, save_hf
from miles_megatron.mapping.load import load_hf, load_tensors
from miles_megatron.mapping.table import Entry, entries

__all__ = ["Entry", "entries", "export_hf", "export_tensors", "load_hf", "load_tensors", "save_hf"]

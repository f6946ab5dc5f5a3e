"""Who converts weights from and to Hugging Face's names and layout: this package's tables, or the package megatron-bridge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from miles_core.errors import UsageError
from miles_megatron import mapping
from miles_megatron.parallel import OWNER

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from miles_megatron.architecture import Architecture
    from miles_megatron.mapping.export import Named
    from miles_megatron.options import MegatronOptions


class Conversion(Protocol):
    """One way to convert. Both methods are collective, and :mod:`miles_megatron.mapping` is one."""

    def load_hf(self, chunks: Sequence[Any], architecture: Architecture, folder: Path) -> None:
        """Fill the chunks' parameters from an HF directory.

        Raises:
            UsageError: it cannot be read (M340), or is not the model's (M342, M343).
        """
        ...

    def export_hf(self, chunks: Sequence[Any], architecture: Architecture, bucket_bytes: int) -> Iterator[Named]:
        """Whole tensors under their HF names on every rank, in buckets of about so many bytes."""
        ...


def conversion(options: MegatronOptions, checkpoint: Path, *, value_head: bool) -> Conversion:
    """That of ``--megatron-to-hf-mode``.

    Args:
        checkpoint: HF directory whose model is trained.
        value_head: whether it is a critic, whose head megatron-bridge does not know.

    Raises:
        UsageError: megatron-bridge is not there or does not run (M577), or cannot convert critics (M578).
    """
    if options.megatron_to_hf_mode == "raw":
        return mapping
    if value_head:
        what, why = "--megatron-to-hf-mode bridge does not go with a critic", "megatron-bridge does not know value heads"
        raise UsageError("M578", what, owner=OWNER, why=why, fix="leave it out, or set it to raw")
    try:
        from miles_megatron.bridge import BridgeConversion
    except Exception as cause:
        # It imports much that may be absent or of another version, and then fails in more ways than one.
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()] or [type(cause).__name__]
        fix = 'install what it lacks, such as transformer-engine, and pip install "miles-megatron[bridge]"; or set it to raw'
        what = "--megatron-to-hf-mode bridge cannot import megatron-bridge"
        raise UsageError("M577", what, owner=OWNER, why=lines[0], fix=fix) from cause
    return BridgeConversion(checkpoint)

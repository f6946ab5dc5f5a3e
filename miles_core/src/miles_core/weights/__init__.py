"""Publishing weights from trainer to engines as a transaction.

Importing this package imports no torch: the driver asks it for folder names.
"""

from miles_core.weights.bucket import Bucket, pack
from miles_core.weights.digests import digest
from miles_core.weights.publisher import EngineHandle, PublishReport, WeightPublisher, drain
from miles_core.weights.transports import Transport, open_bucket, open_transport, remove_stale, run_folder

__all__ = [
    "Bucket",
    "EngineHandle",
    "PublishReport",
    "Transport",
    "WeightPublisher",
    "digest",
    "drain",
    "open_bucket",
    "open_transport",
    "pack",
    "remove_stale",
    "run_folder",
]

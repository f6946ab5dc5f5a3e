"""The test kit: for the tests of losses, estimators and training backends. Imports torch."""

from miles_core.testing.configs import config_of
from miles_core.testing.conformance import check_backend, hf_reference
from miles_core.testing.invariance import check_split_invariance
from miles_core.testing.random_rows import random_rows
from miles_core.testing.toy_backend import ToyBackend
from miles_core.testing.toy_model import ToyModel, toy_reference, write_toy_checkpoint

__all__ = [
    "ToyBackend",
    "ToyModel",
    "check_backend",
    "check_split_invariance",
    "config_of",
    "hf_reference",
    "random_rows",
    "toy_reference",
    "write_toy_checkpoint",
]

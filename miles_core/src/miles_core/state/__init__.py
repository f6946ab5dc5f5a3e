"""The run state on disk: atomic saves and resuming."""

from miles_core.state.held import HeldState, StateFiles, host_copy
from miles_core.state.store import SavedState, StateStore, model_fingerprint

__all__ = ["HeldState", "SavedState", "StateFiles", "StateStore", "host_copy", "model_fingerprint"]

"""The run state on disk: atomic saves and resuming."""

from miles_core.state.store import SavedState, StateStore, model_fingerprint

__all__ = ["SavedState", "StateStore", "model_fingerprint"]

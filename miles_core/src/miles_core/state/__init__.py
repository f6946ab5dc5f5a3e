"""The run state on disk: atomic saves and resuming."""

"""Rollouts that agents outside the run make: they post trajectories to a buffer over HTTP, and the run takes them from there."""

"""Looking into a run: rollouts and training data on disk, replayed rollouts, profiles, memory records."""

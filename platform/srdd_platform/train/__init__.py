"""Training on Ray Train: jobs, workers, checkpoints, progress."""

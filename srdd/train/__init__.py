"""Training steps and a plain loop, free of Ray: batches and callbacks are handed in."""

"""Training: the Trainer, its arguments, checkpoints, resuming, several processes, and what can go wrong on the way."""

"""What a training run writes and prints: checkpoints, figures, provenance, progress; repeated runs."""

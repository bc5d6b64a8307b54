"""What a training run leaves behind, and what ends it: its record, figures, checkpoints, and several seeds."""

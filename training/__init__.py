"""From cues to segmentation: losses, the task, evaluation, the command line."""

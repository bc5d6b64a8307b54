"""What is on disk, and the batches made of it."""

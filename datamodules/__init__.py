"""Data sets on disk, annotations, seed caches, and batches of them."""

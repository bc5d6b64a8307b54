"""Making seed caches: how one process or several ask a network about images, and keep what it says."""

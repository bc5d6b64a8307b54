"""Making seed caches: how one process or several ask a network about pictures, and keep what it says."""

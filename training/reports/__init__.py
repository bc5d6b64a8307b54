"""HTML pages: evaluation, seeds by stage, evidence for and against a class."""

"""A classifier, and what it reveals of where things are."""

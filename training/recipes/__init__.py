"""Whole experiments: stages that are commands, kept while nothing that they depend on has changed."""

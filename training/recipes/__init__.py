"""Recipes: whole experiments as stages, each a command of this program."""

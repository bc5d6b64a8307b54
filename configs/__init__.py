"""One YAML per thing a person runs; shipped so that they are found by name after an installation."""

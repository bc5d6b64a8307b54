"""One YAML per experiment a person runs; shipped so that they are found by name after an installation."""

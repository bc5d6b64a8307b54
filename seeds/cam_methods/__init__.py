"""Methods that explain a network's scores by maps, one file a family; see ``docs/pages/reference/cam-methods.md``."""

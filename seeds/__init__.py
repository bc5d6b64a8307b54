"""A classifier, and class activation maps, cues, and their refinement and evaluation."""

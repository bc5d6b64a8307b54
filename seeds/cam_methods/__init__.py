"""Ways of asking a network why: Grad-CAM's kin, one file a family; see ``README.md`` beside this file."""

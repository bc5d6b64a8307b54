"""How good seeds and explanations are, against masks and against the network itself."""

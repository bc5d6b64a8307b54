"""How good a labelling is: figures and tables."""

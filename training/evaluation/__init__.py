"""How good a labelling is: figures, tables, and a page of images."""

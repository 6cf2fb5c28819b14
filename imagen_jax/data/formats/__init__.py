"""How sets of pictures lie on disk: a file for each format."""

"""Sets of pictures that need no download."""

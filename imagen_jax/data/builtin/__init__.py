"""Built-in sources of pictures, which need no download."""

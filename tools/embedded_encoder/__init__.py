"""Makes the text encoder that ships with the package."""

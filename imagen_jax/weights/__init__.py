"""Weights on disk: their format, and those that ship."""

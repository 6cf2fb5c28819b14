"""Sharded, resumable, checked stores of records (ArrayRecord)."""

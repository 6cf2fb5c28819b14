"""Stores of records: sharded, resumable and with checksums (ArrayRecord)."""

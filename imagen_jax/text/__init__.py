"""Frozen text encoders: T5 in Linen, its tokenizer, and the small encoder that ships with it."""

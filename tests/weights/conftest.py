"""The cascade that these tests share."""

from tiny_cascade import encoder, random_params, tiny, tiny_config

__all__ = ["encoder", "random_params", "tiny", "tiny_config"]

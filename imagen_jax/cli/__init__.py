"""Commands beside `train.py` and `sample.py`: `python -m imagen_jax.cli.NAME`."""

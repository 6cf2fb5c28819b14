"""The commands: `python -m imagen_jax.cli.NAME`, or `imagen-NAME` once the package is installed.

All take absl flags, `--config=NAME|FILE` and `--config.KEY=VALUE`; `common` is their frame.
"""

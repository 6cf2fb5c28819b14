"""Ignores the tests of imagen-pytorch where it is not installed; no extra installs it."""

from benchmarks.imagen_pytorch_peer import is_installed

collect_ignore = [] if is_installed() else ["test_imagen_pytorch_peer.py"]

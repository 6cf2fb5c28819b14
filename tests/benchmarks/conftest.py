"""Leaves the tests of the peer out where it is not installed: it is in none of the extras."""

from benchmarks.imagen_pytorch_peer import is_installed

collect_ignore = [] if is_installed() else ["test_imagen_pytorch_peer.py"]

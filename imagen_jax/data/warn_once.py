"""Warnings of pictures that cannot be read: each once, and few of a kind."""

from __future__ import annotations

import collections
import logging
import threading

# Messages of one kind that are logged; further ones are only counted, by those who count.
MAX_LOGGED = 5

logger = logging.getLogger(__name__)


class WarnOnce:
    """Logs each message once. A picture is read by several readers, and again in each epoch."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[str, set[str]] = collections.defaultdict(set)

    def __call__(self, kind: str, message: str) -> None:
        """Logs `message` unless it was logged before, or `MAX_LOGGED` others of its kind were."""
        with self._lock:
            seen = self._seen[kind]
            if message in seen or len(seen) == MAX_LOGGED:
                return
            seen.add(message)
            rest = "; more of this kind are only counted" if len(seen) == MAX_LOGGED else ""
        logger.warning("left out (%s): %s%s", kind, message, rest)


# Of this process. Data workers send their messages to the process that trains.
warn_once = WarnOnce()

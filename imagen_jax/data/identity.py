"""The identity of a set of pictures, which is saved with a run to notice that the set has changed.

The order of training and the held-out split follow from the places of the pictures in their set. If
a file is added or lost, all later pictures move: what was held out may then be trained on.
"""

from __future__ import annotations

import hashlib
from typing import Any

from imagen_jax.data.buckets import Bucket, BucketedSource
from imagen_jax.data.mixing import MixedSource
from imagen_jax.data.source import Source

# For each set of a source: the number of its pictures, and the digest of its files.
Identity = list[dict[str, Any]]


def identify(source: Source) -> Identity:
    """The identity of all sets that a source reads, as plain JSON values.

    The digest covers the names, sizes and order of the files, with the number of pictures in each;
    not their times, so that a copy of a set has the same identity. Pictures that the program draws
    without files have none.
    """
    return [
        {"pictures": number, "digest": digest} for number, digest in dict.fromkeys(_digests(source))
    ]


def describe(identity: Identity) -> str:
    """Such as "1,234 pictures (3f2a91c0)"."""
    return " and ".join(f"{one['pictures']:,} pictures ({one['digest'][:8]})" for one in identity)


def _digests(source: Source) -> list[tuple[int, str]]:
    if isinstance(source, BucketedSource):
        # A bucket has a part of its set, so its set is found once for each bucket.
        return sorted({found for bucket in source.buckets for found in _digests(bucket)})
    if isinstance(source, MixedSource):
        return [found for part in source.parts for found in _digests(part)]
    if isinstance(source, Bucket):
        return _digests(source.records)
    parts = getattr(source, "parts", None)
    if parts is None:
        return []
    digest, number = hashlib.sha256(), 0
    for text, count in parts():
        digest.update(f"{text}\0{count}\n".encode("utf-8", "surrogateescape"))
        number += count
    return [(number, digest.hexdigest())]

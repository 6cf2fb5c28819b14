"""What the key of an icon's record says, also in a store that was made of the records."""

from __future__ import annotations

import dataclasses

from imagen_jax.data.builtin.icons.groups import GROUPS


@dataclasses.dataclass(frozen=True)
class IconKey:
    """The parts of a key, which is "group/style/concept/name".

    Attributes:
      group: one of `groups.GROUPS`.
      style: of the icon's set.
      concept: what the icon shows.
      name: of the icon in its set.
    """

    group: str
    style: str
    concept: str
    name: str

    def __str__(self) -> str:
        return f"{self.group}/{self.style}/{self.concept}/{self.name}"

    @classmethod
    def parse(cls, key: str) -> IconKey:
        """The inverse of `str`. Raises ValueError if it is not the key of an icon."""
        # The name may hold a slash; the other parts are words.
        parts = key.split("/", 3)
        if len(parts) != 4 or parts[0] not in GROUPS:
            raise ValueError(f"{key!r} is not the key of an icon: group/style/concept/name")
        return cls(*parts)

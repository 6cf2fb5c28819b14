"""Whether a picture shows what its caption says, part by part.

What the caption does not mention is not checked, except for further objects: a picture is accepted
when it shows everything that the caption claims and no other object.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from imagen_jax.data.builtin.shapes.captions import Caption, ObjectClaim
from imagen_jax.errors import UserError
from imagen_jax.evaluation.scene_reader import SeenObject, SeenScene


def check(seen: SeenScene, caption: Caption) -> dict[str, bool]:
    """Compares what a picture shows with what its caption claims.

    Colour, shape and size hold when every object has those of its claim. Where the caption relates
    two objects, the pair of seen objects that matches the claims best is compared.

    Returns:
      Whether each claimed part holds: "count", "colour", "shape", and where claimed "size",
      "relation", "background".

    Raises:
      UserError: the caption claims an unknown relation.
    """
    parts = {"count": len(seen.objects) == caption.count}
    if caption.relation is not None:
        parts |= _related(seen, caption)
    elif seen.objects:
        parts |= _agreement(seen.objects, caption.objects * len(seen.objects))
    else:
        parts |= dict.fromkeys(("colour", "shape"), False)
        if caption.objects[0].size:
            parts["size"] = False
    if caption.background is not None:
        parts["background"] = seen.background == caption.background
    return parts


def holds(first: SeenObject, relation: str, second: SeenObject) -> bool:
    """Whether `first` is `relation` `second`: more to that side than to any other.

    Raises:
      UserError: the relation is unknown.
    """
    right, down = second.x - first.x, second.y - first.y
    sides = {"left of": (right, down), "right of": (-right, down)}
    sides |= {"above": (down, right), "below": (-down, right)}
    if relation not in sides:
        raise UserError(f"relation is {relation!r}; use one of {', '.join(sides)}")
    along, across = sides[relation]
    return along > abs(across)


def _agreement(seen: Sequence[SeenObject], claims: Sequence[ObjectClaim]) -> dict[str, bool]:
    """Whether all objects have the colour, shape and size of their claims."""
    pairs = list(zip(seen, claims, strict=True))
    parts = {
        "colour": all(item.colour == claim.colour for item, claim in pairs),
        "shape": all(item.shape == claim.shape for item, claim in pairs),
    }
    if any(claim.size for claim in claims):
        parts["size"] = all(claim.size in (None, item.size) for item, claim in pairs)
    return parts


def _related(seen: SeenScene, caption: Caption) -> dict[str, bool]:
    """The parts of a caption with a relation, for the pair of objects that matches best."""
    candidates = []
    for objects in itertools.permutations(seen.objects, 2):
        parts = _agreement(objects, caption.objects)
        parts["relation"] = holds(objects[0], caption.relation, objects[1])
        matches = sum(
            (item.colour == claim.colour) + (item.shape == claim.shape)
            for item, claim in zip(objects, caption.objects, strict=True)
        )
        candidates.append((matches, parts["relation"], parts))
    if not candidates:
        return {"colour": False, "shape": False, "relation": False}
    return max(candidates, key=lambda candidate: candidate[:2])[2]

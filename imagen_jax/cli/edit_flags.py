"""The flags that change a picture, enlarge one, or draw other sizes, for sample."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from absl.flags import DEFINE, ArgumentParser, DEFINE_string, FlagValues

from imagen_jax.aspect import SQUARE
from imagen_jax.cli.sampling_flags import parse_value
from imagen_jax.errors import UserError

if TYPE_CHECKING:
    from imagen_jax.sampling import Cascade
    from imagen_jax.sampling.edit import Edit

# Name, type and help of the flags that are numbers, for all stages or by stage.
NUMBERS = {
    "strength": (
        float,
        "With --init_image: share of the steps that is run, in (0, 1]; of the first stage, or by "
        "stage. Default: 0.6, with a mask 1.",
    ),
    "resample": (int, "With a mask: how often the steps are repeated (RePaint). Default: 4."),
    "jump": (
        int,
        "With a mask: steps that are repeated at once. Default: a 25th of the steps.",
    ),
    "tile": (int, "Draw larger pictures in overlapping tiles of this side, in pixels."),
    "tile_overlap": (int, "Pixels that two tiles share. Default: a quarter of --tile."),
}
# Each flag, and one of those that it goes with.
NEEDS = {
    "mask": ("init_image",),
    "outpaint": ("init_image",),
    "strength": ("init_image",),
    "resample": ("mask", "outpaint"),
    "jump": ("mask", "outpaint"),
    "tile_overlap": ("tile", "upscale"),
}
# Flags that exclude each other.
EXCLUSIVE = (
    ("init_image", "low_res_image", "upscale"),
    ("size", "upscale"),
)


def define_edit_flags(flags: FlagValues) -> None:
    """Defines the flags of this module."""
    DEFINE_string("init_image", None, "Change the picture in this file.", flag_values=flags)
    DEFINE_string(
        "mask",
        None,
        "Picture of the size of --init_image: white is drawn anew, black is kept exactly.",
        flag_values=flags,
    )
    DEFINE_string(
        "outpaint",
        None,
        "LEFT,TOP,RIGHT,BOTTOM: margins that are added to --init_image and drawn, in pixels (16) "
        "or shares of its side (0.25).",
        flag_values=flags,
    )
    DEFINE_string(
        "upscale",
        None,
        "Enlarge the picture in this file, of any size, in tiles of the stages' resolutions.",
        flag_values=flags,
    )
    DEFINE_string(
        "size",
        None,
        "WIDTHxHEIGHT of the last stage's pictures, such as 96x64, trained or not.",
        flag_values=flags,
    )
    for name, (kind, text) in NUMBERS.items():
        DEFINE(_NumberParser(name, kind), name, None, text, flag_values=flags)


class _NumberParser(ArgumentParser):
    """Refuses what is no value of the flag, whatever the stages are; the text stays as it is."""

    def __init__(self, name: str, kind: type):
        self._name, self._kind = name, kind

    def parse(self, argument: str) -> str:
        parse_value(self._name, argument, self._kind)
        return argument

    def flag_type(self) -> str:
        return "string"


def starts_from_picture(flags: FlagValues) -> bool:
    """Whether the flags name a picture that is changed or enlarged, so that no prompt is needed."""
    return any(flags[name].value for name in ("init_image", "upscale"))


def read_edit(flags: FlagValues) -> Edit | None:
    """The picture and mask of the flags, or None; checks all that needs no weights.

    Raises:
      UserError: flags that do not go together, a value out of range, an unreadable file.
    """
    given = {name for name in (*NUMBERS, *NEEDS) if flags[name].value is not None}
    given |= {name for names in EXCLUSIVE for name in names if flags[name].value is not None}
    for name in sorted(given & NEEDS.keys()):
        if not given & set(NEEDS[name]):
            needed = " or ".join(f"--{other}" for other in NEEDS[name])
            raise UserError(f"--{name}={flags[name].value} needs {needed}")
    for names in EXCLUSIVE:
        both = [f"--{name}={flags[name].value}" for name in names if name in given]
        if len(both) > 1:
            raise UserError(f"{both[0]} and {both[1]} are both given; give one of them")
    square = flags.aspect == SQUARE
    if not square and given & {"size", "upscale"}:
        raise UserError(f"--aspect={flags.aspect} is not for --size and --upscale: leave one out")

    if not given:
        return None
    from imagen_jax.sampling.edit import Edit, load_mask, outpaint, parse_margins
    from imagen_jax.sampling.low_res_image import load_picture
    from imagen_jax.sampling.sizes import parse_size

    if flags.size is not None:
        parse_size(flags.size, "--size")
    if flags.upscale is not None:
        load_picture(flags.upscale, "picture")
    if flags.init_image is None:
        return None
    picture = load_picture(flags.init_image, "picture")
    mask = None if flags.mask is None else load_mask(flags.mask)
    if flags.outpaint is not None:
        margins = parse_margins(flags.outpaint, "--outpaint")
        picture, mask = outpaint(picture, margins, mask)
    # A value for all stages has no name.
    numbers = {
        name: _all_or_by_stage(flags, name, default)
        for name, default in (
            ("strength", 0.6 if mask is None else 1.0),
            ("resample", 1 if mask is None else 4),
            ("jump", 0),
        )
    }
    return Edit(picture=picture, mask=mask, padded=flags.outpaint is not None, **numbers)


def framing(
    flags: FlagValues, cascade: Cascade, edit: Edit | None
) -> tuple[list[str], dict[str, Any]]:
    """The stages that run, and the fields of the request that these flags decide.

    Raises:
      UserError: see `Cascade.chain` and `Cascade.frame`.
    """
    enlarges = flags.low_res_image is not None or flags.upscale is not None
    chain = cascade.chain(flags.stages, enlarges or cascade.starts_enlarging(edit, flags.stages))
    low_res, size = flags.low_res_image, flags.size
    tile = _all_or_by_stage(flags, "tile", None)
    if flags.upscale is not None:
        low_res, size = cascade.whole_picture(flags.upscale, chain)
        tile = cascade.default_tiles(chain) if tile is None else tile
    overlap = _all_or_by_stage(flags, "tile_overlap", None)
    return chain, cascade.frame(chain, low_res, flags.aspect, size, edit, tile, overlap)


def _all_or_by_stage(flags: FlagValues, name: str, default: Any) -> Any:
    """The value of a flag of `NUMBERS`: one for all stages, or a mapping."""
    text = flags[name].value
    if text is None:
        return default
    values = parse_value(name, text, NUMBERS[name][0])
    return values.get(None, values)

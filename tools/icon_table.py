"""A table of names x styles, drawn by a cascade of icons: what it knows, and what it combines.

    python -m tools.icon_table --config=configs/icons.py --store=STORE --out=icons.png
    python -m tools.icon_table --workdir=runs/icons --store=STORE --out=icons.png --num_names=4

Frames mark the pairs of a name and a style that training never showed. The names are the first ones
by hash that have an unseen pair and are drawn in most styles: nobody picks them. All pictures have
the seed 0.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from absl.flags import DEFINE_integer, DEFINE_string, FlagValues

from imagen_jax.cli import common, config_flag
from imagen_jax.cli.weights_flags import define_weights_flags, find_weights
from imagen_jax.config import CascadeConfig, DataConfig
from imagen_jax.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status, see `common.run`."""
    return common.run(__doc__, define_flags, draw_table, arguments)


def define_flags(flags: FlagValues) -> None:
    """Defines the flags of this command."""
    define_weights_flags(flags)
    DEFINE_string(
        "store", None, "Store of the icons, see docs/icons.md. Needed.", flag_values=flags
    )
    DEFINE_string("out", None, "The PNG file. Needed.", flag_values=flags)
    DEFINE_integer("num_names", 8, "Rows of the table.", lower_bound=1, flag_values=flags)


def draw_table(flags: FlagValues, config: CascadeConfig | None) -> None:
    """Draws and writes the table."""
    for name in ("store", "out"):
        if flags[name].value is None:
            raise UserError(f"--{name} is needed")
    artefact = find_weights(config_flag.path(flags), config, flags.workdir, flags.weights)

    from imagen_jax.data.builtin.icons.captions import icon_captions
    from imagen_jax.data.builtin.icons.groups import SEEN, UNSEEN_PAIR
    from imagen_jax.data.builtin.icons.key import IconKey
    from imagen_jax.data.open import load_records
    from imagen_jax.data.source import hash01
    from imagen_jax.pictures import labelled_table, save_png
    from imagen_jax.sampling import Cascade

    records = load_records(DataConfig(source="array_record", path=flags.store), None)
    groups: dict[str, dict[str, str]] = {}
    for row in range(len(records)):
        key = IconKey.parse(records.record(row).key)
        groups.setdefault(key.concept, {})[key.style] = key.group
    styles = sorted({style for group in groups.values() for style in group})
    concepts = [
        concept
        for concept, group in sorted(groups.items(), key=lambda item: hash01(f"table/{item[0]}"))
        if UNSEEN_PAIR in group.values() and len(group) >= len(styles) - 2
    ][: flags.num_names]
    if not concepts:
        raise UserError(f"--store={flags.store} has no name with an unseen pair")
    common.setup_jax()
    prompts = [icon_captions(concept, style, "")[0] for concept in concepts for style in styles]
    result = Cascade.from_artefact(artefact)(prompts, num_images=1, progress=True)
    pictures = list(result.images.values())[-1]
    unseen = {
        (row, column)
        for row, concept in enumerate(concepts)
        for column, style in enumerate(styles)
        if groups[concept].get(style) != SEEN
    }
    rows = [pictures[i : i + len(styles)] for i in range(0, len(pictures), len(styles))]
    Path(flags.out).parent.mkdir(parents=True, exist_ok=True)
    save_png(flags.out, labelled_table(rows, concepts, styles, unseen))
    print(
        f"{len(concepts)} names in {len(styles)} styles, {len(unseen)} of the pairs unseen: ",
        end="",
    )
    print(flags.out)


if __name__ == "__main__":
    sys.exit(main())

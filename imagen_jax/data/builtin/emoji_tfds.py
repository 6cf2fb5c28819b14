"""The emoji as a TFDS data set, which other programs can read with `tfds`.

    python -m imagen_jax.data.builtin.emoji_tfds ~/tensorflow_datasets

The set is written as ArrayRecord, which needs no TensorFlow. Its splits are "train" and "held_out".
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator

import tensorflow_datasets as tfds

from imagen_jax.data.builtin.emoji import clean_name, find_font, is_held_out, read_font


class Emoji(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Every named bitmap of Noto Color Emoji, with its alpha channel, and its name.

    The splits are those of EmojiSource: all variants of one emoji are in one split.

    Args:
      font: the font file; empty: search the usual places.
      data_dir: folder of data sets.
    """

    name = "noto_emoji"
    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, font: str = "", data_dir: str | None = None):
        self._font = font
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, 4), encoding_format="png"),
            "caption": tfds.features.Text(),
            "sequence": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Bitmaps and names of the font Noto Color Emoji.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, manager):
        del manager
        glyphs = read_font(find_font(self._font))
        return {split: _examples(glyphs, split) for split in ("train", "held_out")}

    def _generate_examples(self):
        raise NotImplementedError("_split_generators returns the examples")


def _examples(glyphs: list[tuple[str, str, bytes]], split: str) -> Iterator:
    of_split = (glyph for glyph in glyphs if is_held_out(glyph[0]) == (split == "held_out"))
    for number, (sequence, name, png) in enumerate(of_split):
        caption = clean_name(name, sequence)
        yield number, {"image": io.BytesIO(png), "caption": caption, "sequence": sequence}


if __name__ == "__main__":
    builder = Emoji(data_dir=sys.argv[1] if len(sys.argv) > 1 else None)
    builder.download_and_prepare()
    print(f"Train with --config.data.source=tfds --config.data.path={builder.data_dir}")

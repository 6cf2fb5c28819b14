"""Settings of the training data."""

from __future__ import annotations

import dataclasses

from imagen_jax.checks import check_at_least, check_choice, check_positive, check_unit_interval
from imagen_jax.errors import UserError

# The default of `max_pixels`: 8192 x 8192. Pillow refuses pictures above its own limit.
MAX_PIXELS = 1 << 26
PILLOW_MAX_PIXELS = 178_956_970
# Sources whose pictures are drawn by the program, all of them square.
DRAWN_SOURCES = ("shapes", "emoji", "icons")
SOURCES = (
    *DRAWN_SOURCES,
    "folder",
    "webdataset",
    "parquet",
    "arrow",
    "tfds",
    "array_record",
    "mix",
)
# What the captions are; see SourceConfig.
CAPTIONS = ("text", "labels", "none")
# "shapes" is endless: it has no epochs, by which the parts of a mix are weighted.
MIXABLE_SOURCES = tuple(source for source in SOURCES if source not in ("mix", "shapes"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One set of pictures with captions; docs/data.md shows each format.

    Attributes:
      source: "shapes", "emoji", "icons", "folder", "webdataset", "parquet", "arrow" (what Hugging
        Face datasets save to disk), "tfds" or "array_record" (what prepare_data writes); for
        DataConfig also "mix".
      path: of the files (empty for "emoji": search the usual places for the font).
      split: "tfds", "parquet" and "arrow": the stored split that is read; "train+test" is two.
      image_field: the column or file extension of the pictures (empty: the usual names).
      caption_fields: the columns or JSON keys of the captions, `captions/text` for one in a group
        (empty: the usual names). An image may have several captions; one is drawn each time.
      captions: "text"; "labels": the names of the classes, for sets without captions; "none": every
        picture has the empty caption, which trains an unconditional network.
      label_field: the column or JSON key of the class, a number or a word (empty: the usual names).
        In a folder, the class is the name of the picture's folder.
      label_names: the names of the classes by their numbers (empty: those that the set stores).
      score_field: the column or JSON key of a number for `min_score` (empty: none).

    Raises:
      UserError: unknown source or captions, or settings of labels that would be ignored.
    """

    source: str = "shapes"
    path: str = ""
    split: str = "train"
    image_field: str = ""
    caption_fields: tuple[str, ...] = ()
    captions: str = "text"
    label_field: str = ""
    label_names: tuple[str, ...] = ()
    score_field: str = ""

    def __post_init__(self) -> None:
        check_choice("source", self.source, SOURCES)
        check_choice("captions", self.captions, CAPTIONS)
        if self.captions != "text" and self.source in (*DRAWN_SOURCES, "mix"):
            raise UserError(
                f"captions={self.captions!r} with source={self.source!r}: "
                + (
                    "set captions in each part of the mix"
                    if self.source == "mix"
                    else "its pictures are drawn from their captions; set captions='text'"
                )
            )
        if self.captions == "labels" and self.source == "array_record":
            raise UserError(
                "captions='labels' with source='array_record': a store has the captions that it "
                "was made with; set captions='labels' for prepare_data and 'text' for the store"
            )
        if self.label_field and self.source == "folder":
            raise UserError(
                f"label_field={self.label_field!r} with source='folder': there, the class is the "
                "name of the picture's folder; set label_field=''"
            )
        if self.captions != "labels" and (self.label_field or self.label_names):
            raise UserError(
                f"label_field={self.label_field!r} and label_names={self.label_names} are read "
                f"only with captions='labels', not {self.captions!r}"
            )
        if self.captions != "text" and self.caption_fields:
            raise UserError(
                f"caption_fields={self.caption_fields} are read only with captions='text', not "
                f"{self.captions!r}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixConfig(SourceConfig):
    """A part of a mix.

    Attributes:
      weight: its share of the examples, relative to the others'.

    Raises:
      UserError: `weight` is not positive.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("weight", self.weight)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(SourceConfig):
    """Where pictures and captions come from, and which are used.

    Attributes:
      mix: the parts of the source "mix", by name.
      aspect_buckets: aspect ratios, width to height, such as ("1:1", "3:2", "2:3"). Each picture is
        cropped to the nearest, and every batch has one; with about as many pixels as the square of
        the stage's resolution. Empty: every picture is cropped to that square.
      min_side: a picture's shorter side is at least this many times the resolution of the stage
        (1: nothing is enlarged; 0: any). In a bucket: each side that of the bucket.
      max_aspect: longer over shorter side, at most (0: any).
      min_caption_length, max_caption_length: characters; captions outside are not drawn, and a
        picture is left out if none remains (0: any).
      min_score: the least `score_field`; pictures without one are left out.
      max_pixels: pictures with more pixels count as unreadable: a small file can be a picture that
        takes gigabytes to decode. A reading thread needs up to 4 bytes a pixel, 16 for WebP. JPEGs
        that are not progressive are reduced while they are decoded; what remains counts.
      max_bad_share: a run stops when a greater share of the pictures cannot be read.
      if_changed: what a continued run does when the pictures are not those of its checkpoint:
        "refuse", or "warn" (also in each later run). Changed files move other pictures in the
        order, also between what is trained on and what is held out.
      embeddings: directory of stored text embeddings (python -m imagen_jax.cli.encode_text); empty:
        the encoder runs beside the training step.
      flip: random horizontal flips. Never for pictures whose caption says left or right.
      num_threads: reading threads of each process or worker.
      num_workers: processes that read ahead, beside each training process (0: it reads itself,
        in threads). For accelerators that are faster than one core can draw or decode.

    Raises:
      UserError: a value out of range, or a mix without parts (or parts without a mix).
    """

    mix: dict[str, MixConfig] = dataclasses.field(default_factory=dict)
    aspect_buckets: tuple[str, ...] = ()
    min_side: float = 0.0
    max_aspect: float = 0.0
    min_caption_length: int = 0
    max_caption_length: int = 0
    min_score: float = 0.0
    max_pixels: int = MAX_PIXELS
    max_bad_share: float = 0.1
    if_changed: str = "refuse"
    embeddings: str = ""
    flip: bool = False
    num_threads: int = 2
    num_workers: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("num_threads", self.num_threads, 1)
        for field in ("num_workers", "min_side", "min_caption_length", "max_caption_length"):
            check_at_least(field, getattr(self, field), 0)
        if not 1 <= self.max_pixels <= PILLOW_MAX_PIXELS:
            raise UserError(
                f"max_pixels={self.max_pixels} must be in [1, {PILLOW_MAX_PIXELS}]; Pillow reads "
                "no picture with more"
            )
        check_unit_interval("max_bad_share", self.max_bad_share)
        check_choice("if_changed", self.if_changed, ("refuse", "warn"))
        if self.max_aspect and self.max_aspect < 1:
            raise UserError(
                f"max_aspect={self.max_aspect} must be 0 (any) or at least 1: it is the longer "
                "side over the shorter"
            )
        if (self.source == "mix") != bool(self.mix):
            raise UserError(
                f"source={self.source!r} with {len(self.mix)} parts in mix: the source 'mix' takes "
                "its pictures from there, the others do not"
            )
        for name, part in self.mix.items():
            check_choice(f"mix.{name}.source", part.source, MIXABLE_SOURCES)
        if self.aspect_buckets:
            self._check_not_drawn()

    def _check_not_drawn(self) -> None:
        sources = {"source": self.source}
        sources |= {f"mix.{name}.source": part.source for name, part in self.mix.items()}
        for path, source in sources.items():
            if source in DRAWN_SOURCES:
                raise UserError(
                    f"aspect_buckets={self.aspect_buckets} with {path}={source!r}: its pictures "
                    "are drawn, and all are square; set aspect_buckets=()"
                )

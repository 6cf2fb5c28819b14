"""Captions to token ids.

A `spiece.model` is read by sentencepiece itself. It gives the same ids as the T5 tokenizer of
transformers, without seconds of import, and does not turn a literal `</s>` in a caption into the
end-of-sequence token. A `tokenizer.json` is read by transformers; such literals are split first.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from imagen_jax.errors import UserError
from imagen_jax.text.hf_files import file_hash

SENTENCEPIECE = "spiece.model"
FAST = "tokenizer.json"
# Files of a CLIP without a tokenizer.json.
VOCABULARY, MERGES = "vocab.json", "merges.txt"


@dataclasses.dataclass
class Tokenizer:
    """Turns captions into padded ids; see `load_tokenizer`.

    Attributes:
      pieces: turns one caption into its ids, without end-of-sequence.
      pad_id, eos_id: of the padding and the end-of-sequence token.
      vocab_size: number of ids.
      hash: SHA-256 of the tokenizer's file in hex.
      start_ids: ids at the start of every caption (CLIP's start-of-text; none for T5).
      num_truncated: number of captions that were truncated so far.
    """

    pieces: Callable[[str], list[int]]
    pad_id: int
    eos_id: int
    vocab_size: int
    hash: str
    start_ids: tuple[int, ...] = ()
    num_truncated: int = 0

    def __call__(self, captions: Sequence[str], max_length: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokenizes.

        Any text is accepted. An empty caption becomes `start_ids` and one end-of-sequence token. A
        caption of more than `max_length` tokens is truncated, with end-of-sequence as its last
        token, and `num_truncated` grows by one.

        Returns:
          ids `[B, max_length]` int32 and mask `[B, max_length]` bool, True where valid.

        Raises:
          UserError: `max_length` is not positive, or `captions` is one string.
        """
        if max_length < 1:
            raise UserError(f"text.max_length is {max_length}: it must be at least 1.")
        if isinstance(captions, str):
            raise UserError(f"captions is the string {captions[:40]!r}: give a list of strings.")
        ids = np.full((len(captions), max_length), self.pad_id, np.int32)
        mask = np.zeros((len(captions), max_length), bool)
        for row, caption in enumerate(captions):
            # Half of a surrogate pair is not valid UTF-8; it becomes a question mark.
            text = caption.encode("utf-8", "replace").decode("utf-8")
            tokens = [*self.start_ids, *self.pieces(text)]
            if len(tokens) >= max_length:
                self.num_truncated += 1
                tokens = tokens[: max_length - 1]
            tokens = [*tokens, self.eos_id]
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = True
        return ids, mask


def load_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face T5 or CLIP directory.

    Raises:
      UserError: the directory holds neither `spiece.model` nor `tokenizer.json` nor CLIP's
        `vocab.json` and `merges.txt`, or the file is damaged.
    """
    if (directory / SENTENCEPIECE).is_file():
        return _from_sentencepiece(directory / SENTENCEPIECE)
    if (directory / FAST).is_file():
        return _from_transformers(directory)
    if (directory / VOCABULARY).is_file() and (directory / MERGES).is_file():
        return _from_transformers(directory)
    raise UserError(
        f"{directory} holds no tokenizer: add {SENTENCEPIECE} or {FAST} (or CLIP's {VOCABULARY} "
        f"and {MERGES})."
    )


def _from_sentencepiece(path: Path) -> Tokenizer:
    import sentencepiece

    try:
        processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path} cannot be read ({error}): fetch it again.") from error
    return Tokenizer(
        pieces=processor.encode,
        pad_id=processor.pad_id(),
        eos_id=processor.eos_id(),
        vocab_size=processor.get_piece_size(),
        hash=file_hash(path),
    )


def _from_transformers(directory: Path) -> Tokenizer:
    from transformers import AutoTokenizer, CLIPTokenizer

    fast = (directory / FAST).is_file()
    kind = AutoTokenizer if fast else CLIPTokenizer
    try:
        tokenizer = kind.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"The tokenizer of {directory} cannot be read: {error}") from error
    literals = sorted(
        {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}, key=len, reverse=True
    )
    controls = set(tokenizer.all_special_ids)
    # CLIP has no unknown token of its own; it uses the end-of-text token.
    unknown = [tokenizer.unk_token_id]
    if tokenizer.unk_token_id == tokenizer.eos_token_id:
        unknown = []

    def pieces(caption: str) -> list[int]:
        for literal in literals:
            caption = caption.replace(literal, f"{literal[0]} {literal[1:]}")
        ids = tokenizer.encode(caption, add_special_tokens=False)
        # Compatibility forms (a full-width bracket) become literals inside the tokenizer only.
        return [j for i in ids for j in (unknown if i in controls else [i])]

    return Tokenizer(
        pieces=pieces,
        pad_id=tokenizer.pad_token_id,
        eos_id=tokenizer.eos_token_id,
        vocab_size=len(tokenizer),
        hash=file_hash(directory / FAST) if fast else _clip_hash(directory),
        start_ids=tuple(tokenizer.encode("")[:-1]),
    )


def _clip_hash(directory: Path) -> str:
    """One hash of the two files of a CLIP tokenizer."""
    both = file_hash(directory / VOCABULARY) + file_hash(directory / MERGES)
    return hashlib.sha256(both.encode()).hexdigest()

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
from imagen_jax.foreign_files import explain_damage, read_json_object
from imagen_jax.text.hf_files import file_hash, unreadable

SENTENCEPIECE = "spiece.model"
FAST = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
# Letters of several scripts, an emoji and a space of its own kind.
_ANY_TEXT = "a Z é 中 ש 🦊 \u3000"
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
      spans: the places of a caption's pieces in it, (first character, behind the last one), one for
        each of `pieces`. None if the tokenizer does not tell.
    """

    pieces: Callable[[str], list[int]]
    pad_id: int
    eos_id: int
    vocab_size: int
    hash: str
    start_ids: tuple[int, ...] = ()
    num_truncated: int = 0
    spans: Callable[[str], list[tuple[int, int]]] | None = None

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
        `vocab.json` and `merges.txt`; the file is damaged; or it has no token for padding, for the
        end of a caption, or for unknown text.
    """
    if (directory / SENTENCEPIECE).is_file():
        path = directory / SENTENCEPIECE
        tokenizer = _from_sentencepiece(path)
    elif (directory / FAST).is_file():
        path = directory / FAST
        tokenizer = _from_transformers(directory, fast=True)
    elif (directory / VOCABULARY).is_file() and (directory / MERGES).is_file():
        path = directory / VOCABULARY
        tokenizer = _from_transformers(directory, fast=False)
    else:
        raise UserError(
            f"{directory} holds no tokenizer: add {SENTENCEPIECE} or {FAST} (or CLIP's "
            f"{VOCABULARY} and {MERGES})."
        )
    _try(tokenizer, path)
    return tokenizer


def _try(tokenizer: Tokenizer, path: Path) -> None:
    """Raises UserError unless the tokenizer turns any text into ids of its vocabulary."""
    try:
        ids, _ = tokenizer([_ANY_TEXT, ""], 32)
    # Libraries raise many types, also a bare Exception.
    except Exception as error:
        reason = explain_damage(b"?", error)
        raise UserError(f"{path} cannot tokenize {_ANY_TEXT!r} ({reason}): fetch it again.") from (
            error
        )
    tokenizer.num_truncated = 0
    if ids.min() < 0 or ids.max() >= tokenizer.vocab_size:
        raise UserError(
            f"{path} gives ids from {ids.min()} to {ids.max()}, but has {tokenizer.vocab_size} "
            "tokens: fetch it again."
        )


def _needed(token: str, token_id: int | None, path: Path) -> int:
    """The id of a token that a text encoder needs."""
    if not isinstance(token_id, int) or token_id < 0:
        raise UserError(
            f"{path} has no {token} token, which a text encoder needs: fetch the tokenizer of the "
            f"text encoder again, with its {SETTINGS}."
        )
    return token_id


def _from_sentencepiece(path: Path) -> Tokenizer:
    import sentencepiece

    try:
        processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    # Of malformed files the library raises RuntimeError, UnicodeDecodeError and others.
    except Exception as error:
        raise UserError(unreadable(path, error)) from error
    spans = None
    if hasattr(processor, "encode_as_offset_mapping"):  # since sentencepiece 0.2.3

        def spans(caption: str) -> list[tuple[int, int]]:
            return processor.encode_as_offset_mapping(caption)["offsets"]

    return Tokenizer(
        pieces=processor.encode,
        pad_id=_needed("padding", processor.pad_id(), path),
        eos_id=_needed("end-of-sequence", processor.eos_id(), path),
        vocab_size=processor.get_piece_size(),
        hash=file_hash(path),
        spans=spans,
    )


def _from_transformers(directory: Path, *, fast: bool) -> Tokenizer:
    from transformers import AutoTokenizer, CLIPTokenizer

    kind = AutoTokenizer if fast else CLIPTokenizer
    if (directory / SETTINGS).is_file():
        settings = read_json_object(directory / SETTINGS)
        for token, name in (("padding", "pad_token"), ("end-of-sequence", "eos_token")):
            if name in settings and settings[name] is None:
                _needed(token, None, directory / SETTINGS)
    try:
        tokenizer = kind.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        vocabulary = tokenizer.get_vocab()
        start_ids = tuple(tokenizer.encode("")[:-1])
    # Of malformed files the library raises what it stumbles over, also a bare Exception.
    except Exception as error:
        reason = explain_damage(b"?", error)
        raise UserError(
            f"The tokenizer of {directory} cannot be read ({reason}): fetch its files again."
        ) from error
    pad_id = _needed("padding", tokenizer.pad_token_id, directory)
    eos_id = _needed("end-of-sequence", tokenizer.eos_token_id, directory)
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
        pad_id=pad_id,
        eos_id=eos_id,
        vocab_size=max(vocabulary.values()) + 1,
        hash=file_hash(directory / FAST) if fast else _clip_hash(directory),
        start_ids=start_ids,
    )


def _clip_hash(directory: Path) -> str:
    """One hash of the two files of a CLIP tokenizer."""
    both = file_hash(directory / VOCABULARY) + file_hash(directory / MERGES)
    return hashlib.sha256(both.encode()).hexdigest()

"""Which files of a set belong to a split, by the names of the files and their folders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePath

from imagen_jax.config import SourceConfig
from imagen_jax.errors import UserError

# The words that name a split, as Hugging Face reads them.
_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_CANONICAL = {word: split for split, words in _WORDS.items() for word in words}
# The split of `NAME-00000-of-00005`. Hugging Face allows no "-" in the name of a split.
_SHARD = re.compile(r"(?:^|-)(\w+)-\d{5}-of-\d{5}")


def choose_names(config: SourceConfig, names: Sequence[str]) -> list[str]:
    """The names among the splits `names` that `split` asks for; "train+val" asks for two.

    Raises:
      UserError: a split is absent.
    """
    chosen = []
    for wanted in _wanted(config):
        found = [name for name in names if name == wanted]
        found = found or [name for name in names if _canonical(name) == _canonical(wanted)]
        if not found:
            raise _absent(config, wanted, names)
        chosen += found
    return list(dict.fromkeys(chosen))


def choose_files(config: SourceConfig, paths: Sequence[Path], root: Path) -> list[Path]:
    """The files of the splits that `split` asks for, in the order of `paths`.

    A split is named by the file (`train.parquet`, `val_1.parquet`, `test-00000-of-00005.parquet`)
    or by a folder (`default/train/0000.parquet`, `val2017/a.parquet`). If no name has a word for a
    split, "train" is all files. One file that `path` names itself is read whatever its name is.

    Args:
      config: has `path` and `split`.
      paths: the files of the set.
      root: the folder that contains all of them.

    Raises:
      UserError: a split is absent; the message lists those that are there.
    """
    if paths == [root] or (len(paths) == 1 and not Path(config.path).expanduser().is_dir()):
        return list(paths)
    relative = {path: path.relative_to(root) for path in paths}
    splits = {path: split_of(name) for path, name in relative.items()}
    if not any(splits.values()) and _wanted(config) == ["train"]:
        return list(paths)
    chosen: set[Path] = set()
    for wanted in _wanted(config):
        found = {path for path in paths if splits[path] == _canonical(wanted)}
        # A split of another name, such as `unsupervised-00000-of-00001` or a folder `extra`.
        found = found or {path for path in paths if wanted in _plain_names(relative[path])}
        if not found:
            names = {name for name in splits.values() if name}
            raise _absent(config, wanted, sorted(names))
        chosen |= found
    return [path for path in paths if path in chosen]


def split_of(name: PurePath) -> str:
    """The split that a file belongs to, "" if its name and its folders have no word for one.

    Args:
      name: of the file, relative to the folder of the set. Folders that are nearer to the file go
        before those above.
    """
    shard = _SHARD.search(name.stem)
    if shard and _word_in(shard[1]):
        # `train_sft` and `train_gen` are two splits, and both differ from `train`.
        return _canonical(shard[1])
    for part in (name.stem, *reversed(name.parts[:-1])):
        if word := _word_in(part):
            return word
    return ""


def _word_in(text: str) -> str:
    """The split of the first word in `text` that names one, else ""."""
    words = re.findall(r"[^\W\d_]+", text.casefold())
    return next((_CANONICAL[word] for word in words if word in _CANONICAL), "")


def _plain_names(name: PurePath) -> set[str]:
    """All names of folder, file and shard that a split of another name may be asked by."""
    shard = _SHARD.search(name.stem)
    return {*name.parts[:-1], name.stem, shard[1] if shard else name.stem}


def _canonical(split: str) -> str:
    return _CANONICAL.get(split.casefold(), split)


def _wanted(config: SourceConfig) -> list[str]:
    return [split.strip() for split in config.split.split("+")]


def _absent(config: SourceConfig, wanted: str, names: Sequence[str]) -> UserError:
    there = (
        f"it has {', '.join(names)} (set config.data.split; several are joined by +)"
        if names
        else "the names of its files have no word for a split; split='train' reads all of them"
    )
    return UserError(f"config.data.path={config.path} has no split {wanted!r}; {there}")

"""Finds the checkpoint to continue from: the newest undamaged one, with the same settings."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from typing import Any

from imagen_jax.config import CascadeConfig, flatten, from_json_dict, to_json_dict
from imagen_jax.data.identity import Identity, describe
from imagen_jax.errors import UserError
from imagen_jax.stage import Stage
from imagen_jax.text.encoder import TextSource
from imagen_jax.training.checkpoint import Checkpoints, DamagedCheckpoint, RunInfo
from imagen_jax.training.counters import Saved
from imagen_jax.training.state import TrainState

# Settings that may differ between a checkpoint and the config that continues it: lengths,
# intervals, paths and devices. Any other change would make a different run in the same directory.
CHANGEABLE = (
    "data.max_bad_share",
    "data.max_pixels",
    "data.num_threads",
    "data.num_workers",
    "data.if_changed",
    # The identity of the pictures is compared, and the hash of the encoder.
    "data.path",
    "data.mix.*.path",
    "text.encoder",
    "data.embeddings",
    "mesh.*",
    "wandb_project",
    "sample.*",
    "train.num_steps",
    "train.batch_size",
    "train.accumulate",
    "train.log_every",
    "train.preview_every",
    "train.save_every",
    "train.keep_checkpoints",
    "train.max_skipped_steps",
    "train.validate_every",
    "train.validation_images",
    "model.remat",
    "model.scan_blocks",
)


def finished_step(checkpoints: Checkpoints, stage: Stage, encoder: TextSource) -> int | None:
    """The step of the newest checkpoint if the run is complete, else None; reads no arrays.

    Raises:
      UserError: the checkpoint belongs to other settings.
    """
    if not checkpoints.steps or checkpoints.steps[0] < stage.config.train.num_steps:
        return None
    try:
        check_same_settings(checkpoints.info(checkpoints.steps[0]), stage, encoder)
    except DamagedCheckpoint:
        return None
    return checkpoints.steps[0]


def newest_good(
    checkpoints: Checkpoints,
    abstract: TrainState,
    stage: Stage,
    encoder: TextSource,
    data: dict[str, Identity],
    print_line: Callable[[str], None],
) -> Saved | None:
    """Reads the newest undamaged checkpoint; moves damaged ones aside, with a warning.

    Args:
      checkpoints: of the stage.
      abstract: shapes and shardings of the state.
      stage, encoder: of the run that continues.
      data: identity of its pictures, by split.
      print_line: prints a line.

    Returns:
      None if there is no checkpoint.

    Raises:
      UserError: all checkpoints are damaged (then none is moved), or the newest undamaged one
        belongs to other settings or pictures.
    """
    damaged: dict[int, str] = {}
    good: Saved | None = None
    for step in checkpoints.steps:
        try:
            info = checkpoints.info(step)
            # Of older checkpoints only the metadata is read: Orbax needs it to save.
            if good is None:
                check_same_settings(info, stage, encoder)
                check_same_data(info.data, data, stage, print_line)
                state = checkpoints.restore(step, abstract)
                good = Saved(step=step, state=state, progress=info.progress)
        except DamagedCheckpoint as error:
            damaged[step] = str(error)
    if damaged and good is None:
        raise UserError(
            f"no checkpoint of stage {stage.name!r} can be used:\n"
            + "\n".join(f"  {reason}" for reason in damaged.values())
            + "\nNothing was changed. Restore a copy, or move the stage's directory away to start "
            "again (with --init_from=... from its ema/ weights, if those are undamaged)."
        )
    for step, reason in damaged.items():
        print_line(f"warning: {reason}; it is kept as {checkpoints.set_aside(step)}")
    return good


def check_same_settings(info: RunInfo, stage: Stage, encoder: TextSource) -> None:
    """Raises UserError if a checkpoint was made with other settings or another encoder."""
    check_same_run(info.config, stage.cascade, stage.name)
    what = f"the checkpoint of stage {stage.name!r}"
    check_same_encoder(what, info.encoder, stage.cascade, encoder)
    if info.tokenizer and info.tokenizer != encoder.tokenizer_hash:
        raise UserError(
            f"{what} was trained with tokenizer {info.tokenizer[:12]}, but that of "
            f"config.text.encoder={stage.cascade.text.encoder!r} is {encoder.tokenizer_hash[:12]}"
        )


def check_same_data(
    saved: dict[str, Identity],
    now: dict[str, Identity],
    stage: Stage,
    print_line: Callable[[str], None],
) -> None:
    """Compares the pictures of a checkpoint with those of the run that continues it.

    Splits that one of the two did not read are not compared.

    Raises:
      UserError: they differ, and `data.if_changed` is "refuse"; if it is "warn", a line is printed.
    """
    config = stage.cascade.data
    changes = [
        f"  {split}: {describe(saved[split])} in the checkpoint, {describe(now[split])} now"
        for split in saved.keys() & now.keys()
        if saved[split] != now[split]
    ]
    if not changes:
        return
    what = f"the pictures in {config.path or config.source!r} are not those of the checkpoint"
    if config.if_changed == "warn":
        print_line(f"warning: {what}:\n" + "\n".join(sorted(changes)))
        return
    raise UserError(
        f"{what}:\n"
        + "\n".join(sorted(changes))
        + "\nFiles were added, lost or changed (or cannot be read now), so that other pictures "
        "would come at each place of the order, and held-out ones might be trained on. Restore the "
        "set, or accept the new one with --config.data.if_changed=warn."
    )


def check_same_encoder(
    what: str, identity: str, config: CascadeConfig, encoder: TextSource
) -> None:
    """Raises UserError if `what` was trained with another text encoder than `encoder`."""
    if identity != encoder.identity:
        raise UserError(
            f"{what} was trained with text encoder {identity[:12]}, but "
            f"config.text.encoder={config.text.encoder!r} is {encoder.identity[:12]}"
        )


def check_same_run(saved: dict[str, Any], config: CascadeConfig, stage: str) -> None:
    """Refuses to continue a run with changed settings, other than `CHANGEABLE` ones.

    Raises:
      UserError: shows each differing key with both values and the remedy.
    """
    # An older checkpoint has the defaults of settings that were added later.
    whole = to_json_dict(from_json_dict(saved))
    old, new = (_relevant(values, stage) for values in (whole, to_json_dict(config)))
    differences = [
        f"  {key}: {old.get(key, '(absent)')!r} in the checkpoint, {new.get(key, '(absent)')!r} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not _changeable(key)
    ]
    if differences:
        raise UserError(
            f"the checkpoint of stage {stage!r} was made with other settings:\n"
            + "\n".join(differences)
            + "\nRestore them, or give a new --workdir (with --init_from=OLD_WORKDIR to start "
            "from these weights)."
        )


def _relevant(values: dict[str, Any], stage: str) -> dict[str, Any]:
    """Flat settings of the cascade and of this stage, without the prefix of the stage."""
    prefix = f"stages.{stage}."
    flat = flatten(values)
    return {
        key.removeprefix(prefix): value
        for key, value in flat.items()
        if key.startswith(prefix) or not key.startswith("stages.")
    }


def _changeable(key: str) -> bool:
    return any(fnmatch.fnmatchcase(key, name) for name in CHANGEABLE)

"""The training loop of one stage: resume, step, log, preview, save. Read it top to bottom."""

from __future__ import annotations

import dataclasses
import signal
import time
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from etils import epath
from jax.sharding import Mesh

from imagen_jax.config import CascadeConfig, to_json_dict
from imagen_jax.data.pipeline import batches
from imagen_jax.data.sources import load_source
from imagen_jax.errors import UserError
from imagen_jax.models import build_model
from imagen_jax.parallel.mesh import replicated
from imagen_jax.sampling import artefact
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.training import feed, preview, summary
from imagen_jax.training.checkpoint import Checkpoints, RunInfo, check_same_run
from imagen_jax.training.interrupt import StopSignal
from imagen_jax.training.logs import RunLog
from imagen_jax.training.optimizer import learning_rate, make_optimizer
from imagen_jax.training.state import TrainState, abstract_state, init_state, state_from_params
from imagen_jax.training.step import bucket_means, make_condition_gap, make_train_step
from imagen_jax.types import Array

# Folded into a stage's key for its first parameters; steps fold in their number, from 0.
INIT = 2**31 - 1


def train_stage(
    config: CascadeConfig,
    name: str,
    workdir: epath.Path,
    encoder: TextEncoder,
    mesh: Mesh,
    *,
    init_from: artefact.Artefact | None = None,
    dry_run: bool = False,
) -> signal.Signals | None:
    """Trains one stage until `train.num_steps`, continuing from its newest checkpoint.

    Args:
      config: the cascade's.
      name: of the stage.
      workdir: the stage's run lies in `workdir/<name>/`.
      encoder: the frozen text encoder.
      mesh: the devices.
      init_from: weights to start from when there is no checkpoint yet.
      dry_run: print what would happen, then return; nothing is written.

    Returns:
      None, or the signal that ended the run early, after it was saved.

    Raises:
      UserError: settings that do not fit the devices, the data or the checkpoint.
    """
    stage = config.stages[name]
    train = stage.train
    is_main = jax.process_index() == 0

    # --- model, optimizer, abstract state -----------------------------------------------------
    feed.check_batch_size(train.batch_size, mesh, f"config.stages.{name}.train.batch_size")
    encoder = feed.replicate_encoder(encoder, mesh)
    model = build_model(
        stage.model,
        resolution=stage.resolution,
        low_res=bool(stage.low_resolution),
        text_dim=encoder.dim,
    )
    optimizer = make_optimizer(train)
    abstract = abstract_state(model, optimizer, mesh)
    source = load_source(config.data, "train", stage.resolution)

    key = jax.device_put(stage_key(config, name), replicated(mesh))
    if is_main:
        print(summary.describe(name, stage, mesh, abstract), flush=True)

    # --- where to start: everything that can be refused is refused before the compiler runs ---
    directory = workdir / name
    checkpoints = latest = info = None
    if not dry_run:
        directory.mkdir(parents=True, exist_ok=True)
        checkpoints = Checkpoints(directory / "checkpoints", train.keep_checkpoints)
        latest = checkpoints.latest_step
    if latest is not None:
        info = checkpoints.info(latest)
        check_same_run(info.config, config, name)
        check_same_encoder(f"the checkpoint of stage {name!r}", info.encoder, config, encoder)
        if latest >= train.num_steps:
            if is_main:
                print(f"  already trained to step {latest:,}\n", flush=True)
            checkpoints.close()
            return None
    elif init_from is not None:
        check_same_encoder("--init_from", init_from.encoder_identity, config, encoder)
        artefact.check_params(name, init_from.stages[name].params, abstract.params)

    # --- compile ------------------------------------------------------------------------------
    compile_start = time.perf_counter()
    step_program = compile_step(config, name, model, optimizer, abstract, encoder, mesh, key)
    if is_main:
        needed = step_program.memory_analysis().temp_size_in_bytes
        print(
            f"  compiled    in {time.perf_counter() - compile_start:.0f} s; the step needs "
            f"{summary.human_bytes(needed)} per device beside the state",
            flush=True,
        )
    if dry_run:
        return None

    # --- state: from the checkpoint, from weights, or from scratch ----------------------------
    images_before = examples_seen = 0
    if info is not None:
        state = checkpoints.restore(latest, abstract)
        images_before, examples_seen = info.images_before, info.examples_seen
        note = f"continuing from the checkpoint of step {latest:,}"
    elif init_from is not None:
        weights = init_from.stages[name]
        state = state_from_params(weights.params, optimizer, mesh)
        images_before = weights.images_seen
        note = f"starting from weights that saw {images_before:,} images"
    else:
        state = init_state(model, optimizer, mesh, jax.random.fold_in(key, INIT))
        note = "starting from scratch"
    step = int(state.step)
    if is_main:
        print(f"  {note}\n", flush=True)

    # --- input --------------------------------------------------------------------------------
    host_batches = batches(
        source,
        batch_size=train.batch_size,
        image_size=stage.resolution,
        seed=config.seed,
        # Weights that are trained on go on in the data, too, instead of seeing its start again.
        start_index=images_before + examples_seen,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_threads=config.data.num_threads,
        num_workers=config.data.num_workers,
        flip=config.data.flip,
        crop_size=train.crop_size,
        crop_multiple=crop_multiple(config, name),
    )
    stream = feed.device_batches(host_batches, encoder, mesh)
    shown, captions = preview.preview_batch(source, encoder, mesh)
    x_hat_grid = preview.make_x_hat_grid(stage, model)
    condition_gap = jax.jit(make_condition_gap(stage, model))
    rate_of = learning_rate(train)

    # --- outputs ------------------------------------------------------------------------------
    log = RunLog(directory, name, step) if is_main else None
    bar = progress_bar(name, train.num_steps, step) if is_main else None

    def save(state: TrainState, step: int) -> None:
        info = RunInfo(
            config=to_json_dict(config),
            examples_seen=examples_seen,
            images_before=images_before,
            encoder=encoder.identity,
        )
        checkpoints.save(step, state, info)
        ema = jax.device_get(jax.device_put(state.ema_params, replicated(mesh)))
        if is_main:
            training = {
                "steps": step,
                "images_seen": images_before + examples_seen,
                "batch_size": train.batch_size,
                "loss": last_loss,
            }
            artefact.save_stage(
                directory / "ema",
                name,
                config,
                ema,
                training,
                encoder.identity,
                encoder.tokenizer_hash,
            )

    def show(state: TrainState, step: int) -> None:
        pictures = np.asarray(x_hat_grid(state.ema_params, shown, key))
        samples = preview.sample_batch(stage, model, state.ema_params, shown, config.seed)
        if is_main:
            preview.write(directory / "samples", step, pictures, samples, captions)
            log.image(step, "x_hat", preview.tile(pictures))
            log.image(step, "samples", preview.tile(samples[None]))

    # --- loop ---------------------------------------------------------------------------------
    last_loss: float | None = None
    bad_items = 0
    window = Window(step)
    try:
        with StopSignal() as stop:
            while step < train.num_steps and stop.received is None:
                wait_start = time.perf_counter()
                batch, num_bad = next(stream)
                bad_items += num_bad
                window.data_wait += time.perf_counter() - wait_start
                state, metrics = step_program(state, batch, key)
                step += 1
                examples_seen += train.batch_size
                if window.metrics:
                    # One step behind: the devices always have the next step queued, and the bar
                    # shows work that is done.
                    jax.block_until_ready(window.metrics[-1])
                window.metrics.append(metrics)
                if is_main:
                    bar.update(1)

                last = step == train.num_steps
                if step % train.log_every == 0 or last:
                    gap = float(condition_gap(state.ema_params, batch, key))
                    values = window.summarize(step, train.batch_size)
                    last_loss = values["loss"]
                    values |= {
                        "conditional_minus_unconditional_loss": gap,
                        "learning_rate": float(rate_of(step - 1)),
                        "images_seen": images_before + examples_seen,
                        "bad_items": bad_items,
                    }
                    if is_main:
                        log.scalars(step, values)
                        rate = f"{values['images_per_second']:.0f} images/s"
                        bar.set_postfix_str(f"loss {last_loss:.4f}, {rate}")
                    window = Window(step)
                # A run that is asked to stop is saved where it is.
                if step % train.save_every == 0 or last or stop.received is not None:
                    save(state, step)
                if step % train.preview_every == 0 or last:
                    show(state, step)
            return stop.received
    finally:
        host_batches.close()
        checkpoints.close()
        if is_main:
            bar.close()
            log.close()


@dataclasses.dataclass
class Window:
    """The steps since the last log line."""

    first_step: int
    start: float = dataclasses.field(default_factory=time.perf_counter)
    data_wait: float = 0.0
    metrics: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def summarize(self, step: int, batch_size: int) -> dict[str, Any]:
        """Means over the window, as plain numbers."""
        host = jax.device_get(self.metrics)
        seconds = time.perf_counter() - self.start
        return {
            "loss": float(np.mean([values["loss"] for values in host])),
            "loss_by_logsnr": bucket_means(
                {
                    name: np.sum([values[name] for values in host], axis=0)
                    for name in ("bucket_loss", "bucket_count")
                }
            ),
            "grad_norm": float(np.mean([values["grad_norm"] for values in host])),
            "images_per_second": (step - self.first_step) * batch_size / seconds,
            "data_wait_share": self.data_wait / seconds,
        }


def check_same_encoder(
    what: str, identity: str, config: CascadeConfig, encoder: TextEncoder
) -> None:
    """Raises UserError if weights were trained with another text encoder than this one."""
    if identity != encoder.identity:
        raise UserError(
            f"{what} was trained with text encoder {identity[:12]}, but "
            f"config.text.encoder={config.text.encoder!r} is {encoder.identity[:12]}"
        )


def compile_step(
    config: CascadeConfig,
    name: str,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    abstract: TrainState,
    encoder: TextEncoder,
    mesh: Mesh,
    key: Array,
) -> jax.stages.Compiled:
    """The train step as a program for this mesh; it cannot be recompiled by accident."""
    stage = config.stages[name]
    jitted = jax.jit(
        make_train_step(stage, model, optimizer),
        donate_argnums=0,
        out_shardings=(jax.tree.map(lambda leaf: leaf.sharding, abstract), replicated(mesh)),
    )
    return jitted.lower(abstract, feed.abstract_batch(stage, encoder, mesh), key).compile()


def stage_key(config: CascadeConfig, name: str) -> jax.Array:
    """The base key of one stage: each draws its own randomness from the cascade's seed."""
    return jax.random.fold_in(
        jax.random.key(config.seed), list(config.ordered_stages()).index(name)
    )


def crop_multiple(config: CascadeConfig, name: str) -> int:
    """Crops start at multiples of the up-scaling factor, so crop-then-down is down-then-crop."""
    stage = config.stages[name]
    return stage.resolution // stage.low_resolution if stage.low_resolution else 1


def progress_bar(name: str, total: int, initial: int):
    """A bar with rate and remaining time on standard error."""
    from tqdm import tqdm

    return tqdm(
        total=total,
        initial=initial,
        desc=name,
        unit="step",
        dynamic_ncols=True,
        mininterval=1.0,
        smoothing=0.05,
    )

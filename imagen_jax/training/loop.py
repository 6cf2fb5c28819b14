"""The training loop of one stage: resume, step, log, preview, save. Read it top to bottom."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

from imagen_jax.config import CascadeConfig, to_json_dict
from imagen_jax.data.pipeline import batches
from imagen_jax.data.sources import load_source
from imagen_jax.errors import UserError
from imagen_jax.models import build_model
from imagen_jax.parallel.mesh import batch_sharding, replicated
from imagen_jax.sampling import artefact
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.training import feed, preview, summary
from imagen_jax.training.checkpoint import Checkpoints, RunInfo, check_same_run
from imagen_jax.training.logs import RunLog
from imagen_jax.training.optimizer import learning_rate, make_optimizer
from imagen_jax.training.state import TrainState, abstract_state, init_state, state_from_params
from imagen_jax.training.step import bucket_means, make_condition_gap, make_train_step
from imagen_jax.types import Batch, TextCond


def train_stage(
    config: CascadeConfig,
    name: str,
    workdir: epath.Path,
    encoder: TextEncoder,
    mesh: Mesh,
    *,
    init_from: artefact.Artefact | None = None,
    dry_run: bool = False,
) -> None:
    """Trains one stage until `train.num_steps`, continuing from its newest checkpoint.

    Args:
      config: the cascade's.
      name: of the stage.
      workdir: the stage's run lies in `workdir/<name>/`.
      encoder: the frozen text encoder.
      mesh: the devices.
      init_from: weights to start from when there is no checkpoint yet.
      dry_run: print what would happen, then return; nothing is written.

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

    # --- compile ------------------------------------------------------------------------------
    state_shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    jitted = jax.jit(
        make_train_step(stage, model, optimizer),
        donate_argnums=0,
        out_shardings=(state_shardings, replicated(mesh)),
    )
    key = jax.device_put(stage_key(config, name), replicated(mesh))
    if is_main:
        print(summary.describe(name, stage, mesh, abstract, None), flush=True)
    compile_start = time.perf_counter()
    step_program = jitted.lower(
        abstract, abstract_batch(config, name, encoder, mesh), key
    ).compile()
    memory = step_program.memory_analysis()
    if is_main:
        print(
            f"  compiled    in {time.perf_counter() - compile_start:.0f} s; the step needs "
            f"{summary.human_bytes(memory.temp_size_in_bytes)} per device beside the state",
            flush=True,
        )
    if dry_run:
        return

    # --- resume, or start from weights, or from scratch ---------------------------------------
    directory = workdir / name
    directory.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(directory / "checkpoints", train.keep_checkpoints)
    images_before = examples_seen = 0
    latest = checkpoints.latest_step
    if latest is not None:
        info = checkpoints.info(latest)
        check_same_run(info.config, config, name)
        if info.encoder != encoder.identity:
            raise UserError(
                f"the checkpoint of stage {name!r} was trained with text encoder {info.encoder}, "
                f"but config.text.encoder={config.text.encoder!r} is {encoder.identity}"
            )
        state = checkpoints.restore(latest, abstract)
        images_before, examples_seen = info.images_before, info.examples_seen
        note = f"continuing from the checkpoint of step {latest:,}"
    elif init_from is not None and name in init_from.stages:
        weights = init_from.stages[name]
        artefact.check_params(name, weights.params, abstract.params)
        state = state_from_params(weights.params, optimizer, mesh)
        images_before = weights.images_seen
        note = f"starting from weights that saw {images_before:,} images"
    else:
        state = init_state(model, optimizer, mesh, jax.random.fold_in(key, 2**31 - 1))
        note = "starting from scratch"
    step = first_step = int(state.step)
    if is_main:
        print(f"  {note}\n", flush=True)
    if step >= train.num_steps:
        if is_main:
            print(f"Stage {name} is already trained to step {step:,}.", flush=True)
        checkpoints.close()
        return

    # --- input --------------------------------------------------------------------------------
    host_batches = batches(
        source,
        batch_size=train.batch_size,
        image_size=stage.resolution,
        seed=config.seed,
        start_index=examples_seen,
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
        while step < train.num_steps:
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
            if bar is not None:
                bar.update(1)

            last = step == train.num_steps
            if step % train.log_every == 0 or last:
                gap = float(condition_gap(state.ema_params, batch, key))
                values = window.summarize(step, train.batch_size)
                last_loss = values["loss"]
                if is_main:
                    values |= {
                        "conditional_minus_unconditional_loss": gap,
                        "learning_rate": float(rate_of(step - 1)),
                        "images_seen": images_before + examples_seen,
                        "bad_items": bad_items,
                    }
                    log.scalars(step, values)
                    bar.set_postfix_str(
                        f"loss {last_loss:.4f}, {values['images_per_second']:.0f} images/s"
                    )
                window = Window(step)
            if step % train.save_every == 0 or last:
                save(state, step)
            if step % train.preview_every == 0 or last:
                show(state, step)
    except KeyboardInterrupt:
        if step > first_step:
            save(state, step)
        raise
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


def stage_key(config: CascadeConfig, name: str) -> jax.Array:
    """The base key of one stage: each draws its own randomness from the cascade's seed."""
    return jax.random.fold_in(
        jax.random.key(config.seed), list(config.ordered_stages()).index(name)
    )


def crop_multiple(config: CascadeConfig, name: str) -> int:
    """Crops start at multiples of the up-scaling factor, so crop-then-down is down-then-crop."""
    stage = config.stages[name]
    return stage.resolution // stage.low_resolution if stage.low_resolution else 1


def abstract_batch(config: CascadeConfig, name: str, encoder: TextEncoder, mesh: Mesh) -> Batch:
    """The shapes and shardings of a training batch."""
    stage = config.stages[name]
    sharding = batch_sharding(mesh)
    size = stage.train.crop_size or stage.resolution
    count, length = stage.train.batch_size, encoder.max_length

    def leaf(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    return Batch(
        image=leaf((count, size, size, 3), jnp.uint8),
        text=TextCond(
            tokens=leaf((count, length, encoder.dim), jnp.float32),
            mask=leaf((count, length), jnp.bool_),
        ),
    )


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

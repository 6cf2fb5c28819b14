"""The training loop of one stage: resume, step, log, preview, save. Read it top to bottom."""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
import time
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from imagen_jax.data.buckets import BucketedSource, load_stage_source
from imagen_jax.data.pipeline import batches
from imagen_jax.files import explain_write_errors
from imagen_jax.parallel.agreement import Agreement
from imagen_jax.parallel.distributed import explain_lost_peer, is_main
from imagen_jax.parallel.placement import BatchRows
from imagen_jax.stage import Stage
from imagen_jax.text.embedding_store import check_covers
from imagen_jax.text.encoder import TextSource
from imagen_jax.training import feed, resume, summary
from imagen_jax.training.activities import Activities, Stopped
from imagen_jax.training.checkpoint import Checkpoints
from imagen_jax.training.counters import LeftOutItems, Progress, Saved, SkippedSteps, Window
from imagen_jax.training.flops import Utilization, model_flops_per_image
from imagen_jax.training.goodput import Goodput
from imagen_jax.training.interrupt import Stop, StopSignal, StopVote
from imagen_jax.training.lock import lock_stage
from imagen_jax.training.optimizer import learning_rate
from imagen_jax.training.outputs import Outputs, export_ema, make_directory
from imagen_jax.training.preview import Previews
from imagen_jax.training.profile import Profile
from imagen_jax.training.program import TrainProgram
from imagen_jax.training.validation import Validation
from imagen_jax.weights import artefact
from imagen_jax.weights.reading import exported_steps


def train_stage(
    stage: Stage,
    workdir: epath.Path,
    encoder: TextSource,
    mesh: Mesh,
    stop: StopSignal,
    *,
    init_from: artefact.Artefact | None = None,
    profile_steps: tuple[int, int] | None = None,
    dry_run: bool = False,
) -> Stop | None:
    """Trains one stage until `train.num_steps`, continuing from its newest whole checkpoint.

    Args:
      stage: what is trained.
      workdir: the run is written to `workdir/<stage>/`.
      encoder: the frozen text encoder, on the mesh, or its stored embeddings.
      mesh: the devices.
      stop: ends the run in all processes once one of them has received a signal.
      init_from: weights to start from when there is no checkpoint yet.
      profile_steps: the first and the last step of this process to trace, counted from 1.
      dry_run: print what would happen, then return; nothing is written.

    Returns:
      None, or how a signal ended the run early, after it was saved. A compiler may then still be at
      work in a thread of its own.

    Raises:
      UserError: settings that do not fit the devices, the data or the checkpoint; no checkpoint
        is whole; too many steps in a row without a finite loss; a full disk.
    """
    config, name, train = stage.cascade, stage.name, stage.config.train
    goodput = Goodput()
    agreement = Agreement()
    vote = StopVote(stop, agreement)

    def print_line(line: str) -> None:
        if is_main():
            print(line, flush=True)

    def print_activity(text: str) -> None:
        if text:
            print_line(f"  {text}")

    # --- program, data ------------------------------------------------------------------------
    program = TrainProgram(stage, mesh, encoder.max_length)
    source = load_stage_source(config, name, "train")
    shapes = feed.picture_shapes(stage, source)
    activities = Activities(vote, mesh)
    activities.show_with(print_activity, 10.0)
    validation = Validation(stage, encoder, mesh, source, activities)
    sources = {"train": source, "held_out": validation.source}
    data = feed.identify_data(sources, agreement)
    feed.check_same_buckets(list(sources.values()), agreement)
    if not source.endless:
        check_covers(encoder, "train", len(source), "the training data has")

    key = program.key
    print_line(summary.describe(stage, mesh, program.abstract_state))
    if isinstance(source, BucketedSource):
        print_line(f"  buckets     {source.describe()}")
    print_line(f"  held out    {validation.note}")

    directory = workdir / name
    checkpoints = Checkpoints(directory / "checkpoints", train.keep_checkpoints)

    def finish_saving() -> None:
        with activities.doing("writing the last checkpoint"):
            checkpoints.close()

    with contextlib.ExitStack() as resources:
        resources.enter_context(jax.set_mesh(mesh))
        if not dry_run:
            resources.enter_context(explain_write_errors(directory))
        starting = resources.enter_context(contextlib.ExitStack())
        starting.enter_context(goodput.during("start"))

        # --- where to start: wrong input is refused before the compiler runs ------------------
        restored = lock = None
        if not dry_run:
            make_directory(directory)
            lock = lock_stage(directory, agreement, print_line)
            if lock is not None:
                resources.callback(lock.close)
            checkpoints.check_names()
            resources.callback(finish_saving)
            exported = agreement.from_main(exported_steps(directory / "ema", name))
            finished = resume.finished_step(checkpoints, stage, encoder)
            if finished is None or finished != exported:
                restored = resume.newest_good(
                    checkpoints, program.abstract_state, stage, encoder, data, print_line
                )
            if restored is not None and restored.step != exported:
                # A run that was killed while it saved has weights there of another step.
                export_ema(directory, stage, encoder, mesh, restored)
            if restored is not None and restored.step >= train.num_steps:
                finished = restored.step
            if finished is not None:
                print_line(f"  already trained to step {finished:,}\n")
                return None
        if restored is None and init_from is not None:
            resume.check_same_encoder("--init_from", init_from.encoder_identity, config, encoder)
            params = init_from.stages[name].params
            artefact.check_params(name, params, program.abstract_state.params)
        if source.endless:
            first = 0
            if restored is not None:
                first = restored.progress.images_before
            elif init_from is not None:
                first = init_from.stages[name].images_seen
            last = first + train.num_steps * train.batch_size
            check_covers(encoder, "train", last, f"{train.num_steps:,} steps read")

        # --- compile --------------------------------------------------------------------------
        compile_step = functools.partial(activities.compile, "the train step")
        compile_gap = functools.partial(activities.compile, "the loss without captions")
        try:
            with goodput.during("compile"):
                step_programs = {shape: program.compile(shape, compile_step) for shape in shapes}
                gap_programs = {shape: program.compile_gap(shape, compile_gap) for shape in shapes}
        except Stopped:
            return Stop(signal=stop.received, stage=name, step=restored.step if restored else 0)
        needed = max(
            compiled.memory_analysis().temp_size_in_bytes for compiled in step_programs.values()
        )
        flops_of = {
            shape: model_flops_per_image(stage, encoder.max_length, shape) for shape in shapes
        }
        # Of several shapes the mean, by their shares.
        image_flops = flops_of[shapes[0]]
        if len(shapes) > 1:
            image_flops = round(source.mean(flops_of))
        print_line(
            f"  compiled    in {goodput.seconds('compile'):.0f} s; the step needs "
            f"{summary.human_bytes(needed)} per device beside the state\n"
            f"  model       {image_flops / 1e9:,.3g} GFLOP per picture (forward and backward)"
        )
        if dry_run:
            return None

        # --- state: from the checkpoint, from weights, or from scratch ------------------------
        progress = Progress()
        if restored is not None:
            state, progress = restored.state, restored.progress
            note = f"continuing from the checkpoint of step {restored.step:,}"
        elif init_from is not None:
            weights = init_from.stages[name]
            state = program.state_from_params(weights.params)
            progress.images_before = weights.images_seen
            note = f"starting from weights that saw {weights.images_seen:,} images"
        else:
            with activities.doing("drawing the first weights"):
                state = program.init_state()
            note = "starting from scratch"
        # The first step reuses these buffers.
        del restored
        step = int(state.step)
        print_line(f"  {note}\n")

        # --- input ----------------------------------------------------------------------------
        rows = BatchRows(mesh, train.batch_size)
        host_batches = batches(
            source,
            batch_size=train.batch_size,
            image_size=stage.config.resolution,
            seed=config.seed,
            # Weights that are trained further continue in the data, too.
            start_index=progress.images_before + progress.examples_seen,
            rows=rows.local,
            counted=rows.counted,
            num_threads=config.data.num_threads,
            num_workers=config.data.num_workers,
            flip=config.data.flip,
            crop_size=train.crop_size,
            # Crops start at multiples of the factor, so crop-then-down is down-then-crop.
            crop_multiple=stage.factor or 1,
        )
        resources.callback(host_batches.close)
        # Text is read ahead, but not beyond the end of the run, where a store may end too.
        remaining = itertools.islice(host_batches, train.num_steps - step)
        stream = feed.device_batches(remaining, encoder, rows)
        resources.callback(stream.close)
        rate_of = learning_rate(train)
        state_size = summary.human_bytes(summary.bytes_per_device(state))

        # --- outputs --------------------------------------------------------------------------
        # Called after the bar is closed.
        resources.callback(activities.show_with, print_activity, 10.0)
        outputs = Outputs(directory, stage, encoder, mesh, checkpoints, data, step)
        resources.callback(outputs.close)
        activities.show_with(outputs.busy, 1.0 if sys.stderr.isatty() else 10.0)
        previews = Previews(stage, source, encoder, mesh, key, activities)
        window = Window(progress.open_window)
        left_out_items = LeftOutItems(progress, config.data.max_bad_share, agreement)
        skips = SkippedSteps(progress, train.max_skipped_steps, outputs.skipped)
        utilization = Utilization(image_flops, mesh)
        profile = Profile(
            profile_steps if is_main() else None, directory / "profile", outputs.print_line
        )
        resources.callback(profile.close)
        # Entered last: nothing else can be closed without the other processes.
        resources.enter_context(explain_lost_peer())

        def save() -> None:
            left_out_items.settle()
            progress.open_window = window.saved()
            if lock is not None:
                lock.check()
            with activities.doing(f"saving step {step:,} ({state_size})", kind="saving"):
                outputs.save(Saved(step=step, state=state, progress=progress))

        def save_here() -> None:
            if step != outputs.saved_step:
                skips.settle()
                save()

        def due(every: int) -> bool:
            return every > 0 and (step % every == 0 or step == train.num_steps)

        # --- loop -----------------------------------------------------------------------------
        starting.close()
        while step < train.num_steps and vote.poll() is None:
            wait_start = time.perf_counter()
            try:
                with goodput.during("data_wait"):
                    batch, left_out = next(stream)
            except Exception:
                # The steps until now must not be lost. (Of several processes, the others wait for
                # this one in the next step, and cannot save.)
                if jax.process_count() == 1:
                    save_here()
                raise
            window.data_wait += time.perf_counter() - wait_start
            left_out_items.add(left_out, len(rows.local))
            with profile.step(step + 1):
                state, metrics = step_programs[batch.image.shape[1:3]](state, batch, key)
            profile.dispatched(metrics)
            step += 1
            progress.examples_seen += train.batch_size
            window.add(metrics)
            # One step behind: the devices always have the next step queued, and the bar shows
            # work that is done.
            skips.dispatched(step, metrics["skipped"])
            outputs.advance()

            values: dict[str, Any] = {}
            if due(train.log_every):
                skips.settle()
                values = window.summarize(train.batch_size)
                window = Window()
                progress.last_loss = values.get("loss", progress.last_loss)
                left_out_items.settle()
                with window.paused(), goodput.during("evaluation"):
                    gap_program = gap_programs[batch.image.shape[1:3]]
                    gap = float(gap_program(state.ema_params, batch, key))
                updates = step - progress.skipped_steps
                values |= {
                    "conditional_minus_unconditional_loss": gap,
                    "learning_rate": float(rate_of(max(updates - 1, 0))),
                    "images_seen": progress.images_before + progress.examples_seen,
                    "bad_items": progress.bad_items,
                    "bad_items_by_kind": dict(progress.bad_by_kind),
                    "filtered_items_by_kind": dict(progress.filtered_by_kind),
                    "skipped_steps": progress.skipped_steps,
                    "goodput": goodput.shares(),
                }
                values |= utilization.values(values["images_per_second"])
            if validation and due(train.validate_every):
                with window.paused(), goodput.during("evaluation"), contextlib.suppress(Stopped):
                    values |= validation(state.ema_params)
            if values:
                outputs.scalars(step, values)
            if due(train.save_every):
                with window.paused(), goodput.during("checkpoint"):
                    skips.settle()
                    # While no step succeeds, checkpoints from before must not be pushed out.
                    if not progress.skipped_in_a_row or step == train.num_steps:
                        save()
            if due(train.preview_every):
                with window.paused(), goodput.during("evaluation"), contextlib.suppress(Stopped):
                    outputs.pictures(step, previews(state.ema_params))

        # A run that is asked to stop is saved where it is.
        save_here()
        received = vote.decide()
        return None if received is None else Stop(signal=received, stage=name, step=step)

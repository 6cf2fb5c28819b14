"""The Efficient U-Net's order of resampling against the usual one, at equal parameters.

    python -m benchmarks.sampling_order --config=configs/shapes32.py --stage=base

The paper (section 2.4, App. B) down-samples before the convolutions of a level and up-samples
after them, and reports 2-3 times the speed. Both networks have the same blocks, see
`graphs.UsualOrder`; each runs in its own process, in turns. The results are printed as Markdown.
"""

from __future__ import annotations

from benchmarks.steps import define_flags, measure_and_print, read_setting, start_worker
from imagen_jax.cli.common import run_command
from imagen_jax.errors import UserError


def main(argv: list[str]) -> None:
    """Measures and prints."""
    del argv
    setting = read_setting()
    if setting.stage.model.kind != "efficient_unet":
        raise UserError(f"model.kind={setting.stage.model.kind}: choose a stage of efficient_unet")

    from benchmarks import ours

    workers = []
    try:
        for name, network in (
            ("down first, up last", ours.stage_network),
            ("usual order", ours.usual_order),
        ):
            workers.append(start_worker(name, ours.build, network, setting))
        measure_and_print(workers, setting)
    finally:
        for worker in workers:
            worker.close()


if __name__ == "__main__":
    define_flags()
    run_command(main)

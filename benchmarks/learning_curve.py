"""The scores of a cascade after so many minutes of training from scratch on this machine.

    python -m benchmarks.learning_curve --out=outputs/curve --minutes=60 --every=15
    python -m benchmarks.learning_curve --out=outputs/curve --minutes=15 -- \\
        --config.stages.base.train.learning_rate=3e-4

Starts train.py for every stage at once, each on its share of the cores; arguments after `--` go to
train.py. It copies the exported weights every `--every` minutes and interrupts the runs after
`--minutes`. The clock starts with the command, so imports and compilation count. Then
`imagen_jax.cli.evaluate` scores the copies, and the scores of the last stage go to curve.json and
curve.png. If the copies are already there, the command only scores them.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from imagen_jax.config import load_config
from imagen_jax.weights import artefact
from imagen_jax.weights.reading import load

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--config", default="configs/shapes.py")
    parser.add_argument("--stages", help="such as base,sr64 (default: all)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=5.0, help="minutes between two copies")
    parser.add_argument("--num_prompts", type=int, default=500)
    parser.add_argument("overrides", nargs="*", help="after --: more flags of train.py")
    flags = parser.parse_args()
    if flags.stages is None:
        flags.stages = ",".join(load_config(flags.config).ordered_stages())
    if not copies(flags.out):
        train(flags)
    points = [score(flags, path) for path in copies(flags.out)]
    (flags.out / "curve.json").write_text(json.dumps(points, indent=1))
    plot(points, flags.out / "curve.png")
    for point in points:
        seen = "  ".join(f"{name} {images:,d} images" for name, images in point["seen"].items())
        shares = "  ".join(f"{group} {share:.1%}" for group, share in point["accepted"].items())
        print(f"{point['minutes']:5.1f} min  {seen}  {shares}")


def copies(out: Path) -> list[Path]:
    """The copied weights, oldest first."""
    return sorted(out.glob("minute_*"))


def train(flags: argparse.Namespace) -> None:
    """Runs train.py for the given minutes and keeps copies of its weights."""
    start = time.monotonic()
    stages = flags.stages.split(",")
    runs = [
        start_run(flags, stage, cores)
        for stage, cores in zip(stages, shares_of_cores(len(stages)), strict=True)
    ]
    due = flags.every
    while any(run.poll() is None for run in runs):
        time.sleep(1.0)
        minutes = (time.monotonic() - start) / 60.0
        if minutes >= flags.minutes:
            break
        if minutes >= due and keep_copy(flags, minutes):
            due = (minutes // flags.every + 1.0) * flags.every
    for run in runs:
        if run.poll() is None:
            run.send_signal(signal.SIGINT)
        run.wait()
    if not keep_copy(flags, (time.monotonic() - start) / 60.0):
        raise SystemExit(
            f"a stage in {flags.out / 'run'} has no weights; the output of train.py above says why"
        )


def shares_of_cores(parts: int) -> list[set[int]]:
    """Divides the cores of this process into parts; with too few cores, parts share them."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < parts:
        return [{cores[part % len(cores)]} for part in range(parts)]
    return [set(cores[part::parts]) for part in range(parts)]


def start_run(flags: argparse.Namespace, stage: str, cores: set[int]) -> subprocess.Popen:
    """Starts train.py for one stage on these cores."""
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        f"--config={flags.config}",
        f"--workdir={flags.out / 'run'}",
        f"--stage={stage}",
        *flags.overrides,
    ]
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)  # the new process inherits it
    try:
        return subprocess.Popen(command)
    finally:
        os.sched_setaffinity(0, mine)


def keep_copy(flags: argparse.Namespace, minutes: float) -> bool:
    """Copies the newest weights; returns False while a stage has none."""
    run, stages = flags.out / "run", flags.stages.split(",")
    if not all((run / stage / "ema" / artefact.CONFIG_FILE).exists() for stage in stages):
        return False
    target = flags.out / f"minute_{minutes:06.2f}"
    artefact.save_cascade(target, load(run), dtype="float32")
    return True


def score(flags: argparse.Namespace, weights: Path) -> dict:
    """Scores one copy; `evaluate` continues an interrupted evaluation."""
    report = weights / "evaluation" / "report.json"
    if not report.exists():
        subprocess.run(
            [
                sys.executable,
                "-m",
                "imagen_jax.cli.evaluate",
                f"--weights={weights.resolve()}",
                f"--stages={flags.stages}",
                f"--num_prompts={flags.num_prompts}",
                f"--out={report.parent.resolve()}",
            ],
            check=True,
            cwd=ROOT,
        )
    described = load(weights).stages
    rows = json.loads(report.read_text())["stages"][flags.stages.split(",")[-1]]["accuracy"]
    return {
        "minutes": float(weights.name.removeprefix("minute_")),
        "seen": {name: stage.images_seen for name, stage in described.items()},
        "accepted": {group: row["accepted"]["share"] for group, row in rows.items()},
    }


def plot(points: list[dict], path: Path) -> None:
    """Plots the accepted share of each group against minutes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for group in points[0]["accepted"]:
        axes.plot(
            [point["minutes"] for point in points],
            [100 * point["accepted"][group] for point in points],
            marker="o",
            label=group,
        )
    axes.set(
        xlabel="minutes of training", ylabel="prompts obeyed, %", ylim=(0, 100), xlim=(0, None)
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()

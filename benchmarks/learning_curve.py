"""What a stage scores after so many minutes of training from scratch, on this machine.

    python benchmarks/learning_curve.py --out=outputs/curve --minutes=60 --every=5
    python benchmarks/learning_curve.py --out=outputs/curve_old --minutes=15 -- \\
        --config.stages.base.train.learning_rate=3e-4

Starts train.py as a user would (what follows `--` goes to it), keeps a copy of the exported
weights whenever another `--every` minutes are over, and ends the run with Ctrl-C's signal after
`--minutes`. The clock starts with the command, so imports and compilation count. The copies are
then scored by `imagen_jax.cli.evaluate`, and the scores go to curve.json and curve.png. Given
again, it scores what is there instead of training again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--config", default="configs/shapes.py")
    parser.add_argument("--stage", default="base")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=5.0, help="minutes between two copies")
    parser.add_argument("--num_prompts", type=int, default=500)
    parser.add_argument("overrides", nargs="*", help="after --: further flags of train.py")
    flags = parser.parse_args()
    if not copies(flags.out):
        train(flags)
    points = [score(flags, path) for path in copies(flags.out)]
    (flags.out / "curve.json").write_text(json.dumps(points, indent=1))
    plot(points, flags.out / "curve.png")
    for point in points:
        shares = "  ".join(f"{group} {share:.1%}" for group, share in point["accepted"].items())
        print(f"{point['minutes']:5.1f} min  {point['images_seen']:8,d} images  {shares}")


def copies(out: Path) -> list[Path]:
    """The copied weights, oldest first."""
    return sorted(out.glob("minute_*"))


def train(flags: argparse.Namespace) -> None:
    """Runs train.py for the given minutes and leaves copies of its weights."""
    start = time.monotonic()
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        f"--config={flags.config}",
        f"--workdir={flags.out / 'run'}",
        f"--stage={flags.stage}",
        *flags.overrides,
    ]
    run = subprocess.Popen(command)
    weights = flags.out / "run" / flags.stage / "ema"
    newest, due = None, flags.every
    while run.poll() is None:
        time.sleep(1.0)
        minutes = (time.monotonic() - start) / 60.0
        # The description is written last, after the weights that it describes.
        described = weights / "config.json"
        if minutes >= flags.minutes:
            run.send_signal(signal.SIGINT)
            run.wait()
            break
        if described.exists() and described.stat().st_mtime != newest and minutes >= due:
            newest = described.stat().st_mtime
            copy(weights, flags, minutes)
            due = (minutes // flags.every + 1.0) * flags.every
    copy(weights, flags, (time.monotonic() - start) / 60.0)
    shutil.copy(flags.out / "run" / flags.stage / "metrics.jsonl", flags.out)


def copy(weights: Path, flags: argparse.Namespace, minutes: float) -> None:
    """Keeps the weights as a work directory of their own."""
    target = flags.out / f"minute_{minutes:06.2f}" / flags.stage / "ema"
    shutil.copytree(weights, target, dirs_exist_ok=True)


def score(flags: argparse.Namespace, weights: Path) -> dict:
    """Scores one copy; `evaluate` goes on where it was interrupted."""
    report = weights / "evaluation" / "report.json"
    if not report.exists():
        subprocess.run(
            [
                sys.executable,
                "-m",
                "imagen_jax.cli.evaluate",
                f"--workdir={weights}",
                f"--stages={flags.stage}",
                f"--num_prompts={flags.num_prompts}",
                f"--out={report.parent}",
            ],
            check=True,
            cwd=ROOT,
        )
    stage = json.loads(report.read_text())["stages"][flags.stage]
    described = json.loads((weights / flags.stage / "ema" / "config.json").read_text())
    return {
        "minutes": float(weights.name.removeprefix("minute_")),
        "images_seen": described["stages"][flags.stage]["images_seen"],
        "accepted": {group: row["accepted"]["share"] for group, row in stage["accuracy"].items()},
    }


def plot(points: list[dict], path: Path) -> None:
    """Accepted share of each group against minutes."""
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

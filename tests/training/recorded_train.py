"""train.py that records the batches of its steps, in WORKDIR/fed/STEP.PROCESS.npz."""

import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from imagen_jax.cli import train
from imagen_jax.training.program import TrainProgram

compile_step = TrainProgram.compile


class RecordedStep:
    """The compiled step; each call writes the rows of this process's devices."""

    def __init__(self, program: Any):
        self._program = program
        self.memory_analysis = program.memory_analysis
        [workdir] = [flag for flag in sys.argv if flag.startswith("--workdir=")]
        self._directory = Path(workdir.removeprefix("--workdir=")) / "fed"
        self._directory.mkdir(parents=True, exist_ok=True)

    def __call__(self, state: Any, batch: Any, key: Any) -> Any:
        leaves = {"image": batch.image, "tokens": batch.text.tokens, "mask": batch.text.mask}
        rows: dict[str, dict[int, np.ndarray]] = {}
        for name, leaf in leaves.items():
            rows[name] = {}
            for shard in leaf.addressable_shards:
                start = shard.index[0].indices(len(leaf))[0]
                rows[name] |= dict(enumerate(np.asarray(shard.data), start))
        arrays = {name: np.stack(list(of_name.values())) for name, of_name in rows.items()}
        path = self._directory / f"{int(state.step)}.{jax.process_index()}.npz"
        np.savez(path, rows=list(rows["image"]), **arrays)
        return self._program(state, batch, key)


if __name__ == "__main__":
    TrainProgram.compile = lambda *arguments: RecordedStep(compile_step(*arguments))
    sys.exit(train.main())

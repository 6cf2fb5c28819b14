"""train.py that records the batches of its steps, in WORKDIR/fed/STEP.PROCESS.npz."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from imagen_jax.cli import common, train
from imagen_jax.training import loop

flags.adopt_module_key_flags(common)
flags.adopt_module_key_flags(train)

compile_step = loop.compile_step


class RecordedStep:
    """The compiled step; each call writes the rows of this process's devices."""

    def __init__(self, program: Any):
        self._program = program
        self.memory_analysis = program.memory_analysis
        self._directory = Path(train.WORKDIR.value) / "fed"
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
    loop.compile_step = lambda *arguments: RecordedStep(compile_step(*arguments))
    train.run()

"""One of two processes with four devices each, started by test_multiprocess.py."""

import itertools
from pathlib import Path

import jax
import numpy as np
from absl import app, flags

from imagen_jax.config import MeshConfig
from imagen_jax.data.pipeline import batches
from imagen_jax.data.source import BadItem, Item
from imagen_jax.parallel import distributed
from imagen_jax.parallel.agreement import Agreement
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.parallel.placement import BatchRows, replicate
from imagen_jax.parallel.sharding import tree_shardings
from imagen_jax.training.checkpoint import Checkpoints, DamagedCheckpoint, RunInfo
from imagen_jax.training.counters import Progress
from imagen_jax.training.state import TrainState

TASK = flags.DEFINE_string("task", None, "Which test.")
DIRECTORY = flags.DEFINE_string("directory", None, "Shared by both.")
COORDINATOR = flags.DEFINE_string("coordinator", None, "")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "")

BATCH = 8


class Numbered:
    """Item i is a picture of the value i; some cannot be read."""

    endless = False
    bad = (3, 17)

    def __len__(self):
        return 40

    def item(self, index):
        if index in self.bad:
            raise BadItem(str(index), "cut")
        return Item(np.full((2, 2, 3), index, np.uint8), str(index))


def rows() -> None:
    """Every device has the rows of its place in the mesh, for any mesh."""
    interleaved = [*jax.devices()[::2], *jax.devices()[1::2]]
    by_process = [jax.devices()[i] for i in (0, 4, 1, 5, 2, 6, 3, 7)]
    settings = {"batch_size": BATCH, "image_size": 2, "seed": 5, "start_index": 11}
    whole = list(itertools.islice(batches(Numbered(), **settings), 6))
    expected = [batch["image"][:, 0, 0, 0].tolist() for batch in whole]
    bad_items = sum(sum(batch["left_out"]["bad"].values()) for batch in whole)
    assert bad_items > 0
    for config, devices in itertools.product(
        (
            MeshConfig(data=8),
            MeshConfig(data=2, fsdp=4),
            MeshConfig(data=2, fsdp=2, tensor=2),
            MeshConfig(data=1, fsdp=1, tensor=8),
            MeshConfig(data=1, fsdp=2, tensor=4),
        ),
        (jax.devices(), interleaved, by_process),
    ):
        mesh = make_mesh(config, devices)
        # `make_mesh` may put devices in an order of its own; here the given one is meant.
        places = np.array(devices).reshape(mesh.devices.shape)
        mesh = jax.sharding.Mesh(places, mesh.axis_names, axis_types=mesh.axis_types)
        batch_rows = BatchRows(mesh, BATCH)
        stream = batches(Numbered(), rows=batch_rows.local, counted=batch_rows.counted, **settings)
        replaced = 0
        for step in range(6):
            host = next(stream)
            image = batch_rows.global_array(host["image"])
            assert image.shape == (BATCH, 2, 2, 3)
            covered = set()
            for shard in image.addressable_shards:
                here = range(*shard.index[0].indices(BATCH))
                covered.update(here)
                assert np.asarray(shard.data)[:, 0, 0, 0].tolist() == [
                    expected[step][row] for row in here
                ]
            # Only rows of this process's devices are read.
            assert covered == set(batch_rows.local.tolist())
            replaced += sum(host["left_out"]["bad"].values())
        stream.close()
        assert sum(Agreement().gather(replaced)) == bad_items


def agreement() -> None:
    """Values of any size arrive whole and in the order of the processes."""
    here, exchange = jax.process_index(), Agreement()
    for size in (0, 1, 1000, 5000):
        value = {"from": here, "text": "ä" * size, "none": None, "list": [1.5, here]}
        other = value | {"from": 1 - here, "list": [1.5, 1 - here]}
        assert exchange.gather(value) == ([value, other] if here == 0 else [other, value])
    # Of unequal length.
    assert exchange.gather("x" * (3000 * here + 1)) == ["x", "x" * 3001]
    assert exchange.from_main(f"process {here}") == "process 0"
    whole = replicate({"a": np.arange(6).reshape(2, 3)}, make_mesh(MeshConfig()))
    np.testing.assert_array_equal(whole["a"], np.arange(6).reshape(2, 3))
    assert len(whole["a"].addressable_shards) == 4


def damage() -> None:
    """A checkpoint that one process cannot read is damaged for both, which restore an older one."""
    from orbax.checkpoint import v1 as ocp

    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    rng = np.random.default_rng(0)
    params = {"dense": rng.normal(size=(64, 128)).astype(np.float32)}
    host = TrainState(step=np.int32(1), params=params, ema_params=params, opt_state=np.int32(5))
    shardings = tree_shardings(host, mesh)
    state = jax.tree.map(
        lambda leaf, sharding: jax.make_array_from_callback(
            np.shape(leaf), sharding, lambda index: np.asarray(leaf)[index]
        ),
        host,
        shardings,
    )
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )
    directory = Path(DIRECTORY.value) / "checkpoints"
    checkpoints = Checkpoints(directory, 3)
    for step in (1, 2):
        checkpoints.save(step, state, RunInfo(config={}, encoder="e", progress=Progress()))
    checkpoints.close()
    assert checkpoints.steps == [2, 1]

    load = ocp.load
    if jax.process_index() == 1:

        def torn(path, *arguments):
            if str(path).endswith("/2"):
                raise ValueError("a torn file")
            return load(path, *arguments)

        ocp.load = torn
    try:
        checkpoints.restore(2, abstract)
        raise AssertionError("it is damaged")
    except DamagedCheckpoint as error:
        assert "a torn file" in str(error)
    restored = checkpoints.restore(1, abstract)
    for leaf, want in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        for shard, other in zip(leaf.addressable_shards, want.addressable_shards, strict=True):
            np.testing.assert_array_equal(shard.data, other.data)
    assert str(checkpoints.set_aside(2)) == str(directory.parent / "damaged" / "2")
    assert checkpoints.steps == [1]
    # The metadata, which process 0 alone reads.
    if jax.process_index() == 0:
        (directory / "1" / "_CHECKPOINT_METADATA").write_text("{")
    Agreement().gather(0)
    try:
        checkpoints.info(1)
        raise AssertionError("it is damaged")
    except DamagedCheckpoint:
        pass


def main(argv: list[str]) -> None:
    del argv
    distributed.initialize(
        coordinator=COORDINATOR.value,
        num_processes=NUM_PROCESSES.value,
        process_id=PROCESS_ID.value,
    )
    {"rows": rows, "agreement": agreement, "damage": damage}[TASK.value]()
    print(f"{TASK.value} is right", flush=True)


if __name__ == "__main__":
    app.run(main)

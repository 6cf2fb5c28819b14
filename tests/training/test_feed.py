"""Batches on the mesh: text one batch ahead, in order, with the same result."""

import threading

import jax
import numpy as np
import pytest

from imagen_jax.config import MeshConfig, TextConfig
from imagen_jax.parallel.mesh import batch_sharding, make_mesh
from imagen_jax.parallel.placement import BatchRows
from imagen_jax.text.encoder import load_encoder
from imagen_jax.training.feed import device_batches
from imagen_jax.types import TextCond


def host_batches(number, rows=8):
    for i in range(number):
        yield {
            "image": np.full((rows, 4, 4, 3), i, np.uint8),
            "captions": [f"a picture of {i} red circles {row}" for row in range(rows)],
            "left_out": {"bad": {"cut": i}},
        }


class Recording:
    """A text source that records its calls and their threads."""

    dim, max_length, identity, tokenizer_hash = 2, 3, "", ""

    def __init__(self):
        self.events = []
        self.prepared = [threading.Event() for _ in range(10)]

    def prepare(self, captions):
        number = int(captions[0].split()[3])
        self.events.append(("prepare", number, threading.current_thread().name))
        self.prepared[number].set()
        return number

    def embed(self, prepared, place):
        self.events.append(("embed", prepared, threading.current_thread().name))
        local = np.full((8, 3, 2), prepared, np.float32)
        return TextCond(
            tokens=place(local),
            mask=place(np.ones((8, 3), bool)),
        )


def test_text_is_encoded_one_batch_ahead_and_prepared_two_ahead():
    source, rows = Recording(), BatchRows(make_mesh(MeshConfig()), 8)
    main = threading.current_thread().name
    stream = device_batches(host_batches(5), source, rows)
    for number in range(5):
        batch, left_out = next(stream)
        assert left_out["bad"]["cut"] == number and int(batch.image[0, 0, 0, 0]) == number
        assert float(batch.text.tokens[0, 0, 0]) == number
        embedded = [n for kind, n, _ in source.events if kind == "embed"]
        assert embedded == list(range(min(number + 2, 5)))
        # The thread prepares this batch without a further call of `next`.
        if number + 2 < 5:
            assert source.prepared[number + 2].wait(timeout=60)
    assert next(stream, None) is None
    threads = {kind: {name for k, _, name in source.events if k == kind} for kind in ("embed",)}
    assert threads["embed"] == {main}
    assert main not in {name for kind, _, name in source.events if kind == "prepare"}


def test_batches_equal_those_encoded_one_by_one():
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    encoder = load_encoder(TextConfig(max_length=16), mesh=mesh)
    for (batch, _), host in zip(
        device_batches(host_batches(3), encoder, BatchRows(mesh, 8)), host_batches(3), strict=True
    ):
        alone = encoder.embed(
            encoder.prepare(host["captions"]),
            lambda local: jax.device_put(local, batch_sharding(mesh)),
        )
        jax.tree.map(np.testing.assert_array_equal, batch.text, alone)
        assert batch.text.tokens.sharding.is_equivalent_to(batch_sharding(mesh), 3)
        # 1e-5: on one device other sums.
        plain = load_encoder(TextConfig(max_length=16)).encode_captions(host["captions"])
        np.testing.assert_allclose(batch.text.tokens, plain.tokens, atol=1e-5)


def test_errors_of_the_thread_arrive_and_closing_ends_it():
    rows = BatchRows(make_mesh(MeshConfig()), 8)

    def broken():
        yield from host_batches(2)
        raise ValueError("the disk is on fire")

    stream = device_batches(broken(), Recording(), rows)
    assert next(stream)[1] == {"bad": {"cut": 0}}
    with pytest.raises(ValueError, match="on fire"):
        next(stream)

    stream = device_batches(host_batches(9), Recording(), rows)
    next(stream)
    stream.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("text")]

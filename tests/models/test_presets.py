"""The paper's networks by size, and the golden list of their parameters.

The paths and shapes of the parameters are an interface (weights files, sharding rules). After a
wanted change write the lists anew with `python tests/models/test_presets.py` and say in the commit
what becomes of the weights that exist.
"""

from __future__ import annotations

import functools
import math
import pathlib

import jax
import pytest

from imagen_jax.models import init_params, presets

GOLDEN = pathlib.Path(__file__).parent / "golden"
TEXT_DIM = 4096  # T5-XXL
RESOLUTIONS = {"base64": 64, "sr256": 256, "sr1024": 1024}


@functools.cache
def shapes(name: str) -> dict[str, tuple[int, ...]]:
    model = getattr(presets, name)().make_network(low_res=name != "base64", text_dim=TEXT_DIM)
    tree = jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(key.key for key in path): leaf.shape for path, leaf in flat}


def listing(name: str) -> str:
    return "".join(f"{path} {list(shape)}\n" for path, shape in sorted(shapes(name).items()))


def size(name: str) -> int:
    return sum(math.prod(shape) for shape in shapes(name).values())


def conv(i, o):
    return 9 * i * o + o


def linear(i, o):
    return i * o + o


def norm(c):
    return 2 * c


def res(i, o, e, shortcut=None):
    shortcut = i != o if shortcut is None else shortcut
    size = norm(i) + conv(i, o) + linear(e, 2 * o) + norm(o) + conv(o, o)
    return size + (linear(i, o) if shortcut else 0)


def text_trunk(e):  # the keys of the pooling have no bias
    return 2 * norm(TEXT_DIM) + 3 * linear(TEXT_DIM, e) - e + linear(e, e)


def test_base64_size_is_the_sum_over_its_layers():
    e = 2048

    def block(i, o):  # with attention, whose keys and values come from pixels and text
        return res(i, o, e) + norm(o) + 4 * linear(o, o) + 2 * linear(TEXT_DIM, o)

    layers = [
        conv(3, 512), linear(512, e), linear(e, e), text_trunk(e),
        *3 * [res(512, 512, e)], res(512, 512, e),
        block(512, 1024), *2 * [block(1024, 1024)], res(1024, 1024, e),
        block(1024, 1536), *2 * [block(1536, 1536)], res(1536, 1536, e),
        block(1536, 2048), *2 * [block(2048, 2048)],
        block(2048, 2048), res(2048, 2048, e),  # middle
        *3 * [block(4096, 2048)], block(3584, 2048), res(2048, 2048, e),
        block(3584, 1536), *2 * [block(3072, 1536)], block(2560, 1536), res(1536, 1536, e),
        block(2560, 1024), *2 * [block(2048, 1024)], block(1536, 1024), res(1024, 1024, e),
        res(1536, 512, e), *3 * [res(1024, 512, e)],
        norm(512), conv(512, 3),
    ]  # fmt: skip
    assert size("base64") == sum(layers)
    assert 2.20e9 < size("base64") < 2.45e9  # "2B", section 4.1


@pytest.mark.parametrize("name", ["sr256", "sr1024"])
def test_super_resolution_size_is_the_sum_over_its_layers(name):
    e, heads = 512, 2048
    image_keys = 2 * linear(1024, heads) if name == "sr256" else 0
    attention = norm(1024) + linear(1024, heads) + image_keys + linear(heads, 1024)
    # Beside the keys of pixels those of the text have a bias.
    attention += 2 * linear(TEXT_DIM, heads) - (heads if name == "sr1024" else 0)
    resample = [conv(128, 128), conv(128, 256), conv(256, 512), conv(512, 1024)]
    back = [conv(128, 128), conv(256, 128), conv(512, 256), conv(1024, 512)]
    blocks = {128: 2, 256: 4, 512: 8, 1024: 8}
    side = sum(n * res(c, c, e, shortcut=True) for c, n in blocks.items()) + attention
    embeddings = 2 * (linear(128, e) + linear(e, e))
    ends = conv(6, 128) + norm(128) + conv(128, 3)
    assert size(name) == 2 * side + sum(resample + back) + embeddings + text_trunk(e) + ends


def test_super_resolution_sizes_are_near_the_papers():
    assert 0.50e9 < size("sr256") < 0.60e9  # "600M", section 4.1
    # Section 4.1 says 400M, which does not follow from F.3: it takes only the self-attention, 2 %,
    # from the network of F.2.
    assert 0.48e9 < size("sr1024") < 0.58e9


@pytest.mark.parametrize("name", sorted(RESOLUTIONS))
def test_paths_and_shapes_are_the_golden_ones(name):
    assert listing(name) == (GOLDEN / f"{name}.txt").read_text()


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for preset in RESOLUTIONS:
        (GOLDEN / f"{preset}.txt").write_text(listing(preset))

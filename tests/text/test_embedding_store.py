"""Stored embeddings equal those of the encoder, and a caption never gets another one's."""

import collections
import dataclasses
import itertools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.config import DataConfig, MeshConfig, TextConfig
from imagen_jax.data.open import load_source
from imagen_jax.data.pipeline import batches, item_captions
from imagen_jax.data.source import BadItem
from imagen_jax.errors import UserError
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.parallel.placement import BatchRows
from imagen_jax.text import embedding_store
from imagen_jax.text.embedding_store import StoredText, open_store
from imagen_jax.text.encode_captions import CaptionSet, describe, encode_captions
from imagen_jax.text.encoder import EMBEDDED, load_encoder
from imagen_jax.training.feed import device_batches

TEXT = TextConfig(max_length=16)
ITEMS, HELD_OUT = 100, 20


def one_device():
    return make_mesh(MeshConfig(), jax.devices()[:1])


def caption_set(train=ITEMS, held_out=HELD_OUT):
    sources = [load_source(DataConfig(), split, 8) for split in ("train", "held_out")]
    return CaptionSet("shapes", *sources, train, held_out)


def make(directory, dtype="float32", encoder_dtype="float32", text=TEXT, captions=None, **options):
    mesh = options.pop("mesh", None) or one_device()
    encoder = load_encoder(text, dtype=encoder_dtype, mesh=mesh)
    options = {"batch_size": 8, "shard_size": 32} | options
    captions = captions or caption_set()
    return encode_captions(directory, captions, encoder, text, mesh, dtype=dtype, **options)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    directory = tmp_path_factory.mktemp("store") / "f32"
    make(directory)
    return directory


def every_caption():
    captions = caption_set()
    return captions.captions(0, len(captions), collections.Counter())


@pytest.mark.parametrize(("dtype", "encoder_dtype"), [("float32",) * 2, ("bfloat16",) * 2])
def test_training_batches_are_those_of_the_encoder_bit_for_bit(tmp_path, dtype, encoder_dtype):
    make(tmp_path / "store", dtype, encoder_dtype)
    mesh = one_device()
    online = load_encoder(TEXT, dtype=encoder_dtype, mesh=mesh)
    stored = open_store(str(tmp_path / "store"), TEXT)
    assert (stored.dim, stored.max_length) == (online.dim, online.max_length)
    assert (stored.identity, stored.tokenizer_hash) == (online.identity, online.tokenizer_hash)

    def stream(text):
        source = load_source(DataConfig(), "train", 8)
        host = batches(source, batch_size=8, image_size=8, seed=0, num_threads=0)
        return device_batches(itertools.islice(host, ITEMS // 8), text, BatchRows(mesh, 8))

    for (one, _), (other, _) in zip(stream(online), stream(stored), strict=True):
        assert other.text.tokens.dtype == jnp.float32
        jax.tree.map(np.testing.assert_array_equal, one, other)
        assert other.text.tokens.sharding.is_equivalent_to(one.text.tokens.sharding, 3)


def test_on_a_mesh_rows_lie_as_asked(store):
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    stored = StoredText(store)
    host = iter([{"image": np.zeros((8, 4, 4, 3), np.uint8), "captions": every_caption()[:8],
                  "left_out": {}}])  # fmt: skip
    ((batch, _),) = device_batches(host, stored, BatchRows(mesh, 8))
    expected = load_encoder(TEXT).encode_captions(every_caption()[:8])
    assert len(batch.text.tokens.addressable_shards) == 8
    # 1e-5: the store was made on one device in batches of other captions.
    np.testing.assert_allclose(batch.text.tokens, expected.tokens, atol=1e-5)
    np.testing.assert_array_equal(batch.text.mask, expected.mask)


def test_int8_is_within_half_a_step_of_each_token(tmp_path, store):
    make(tmp_path / "store", "int8")
    exact, small = StoredText(store), StoredText(tmp_path / "store")
    captions = every_caption()
    want = np.asarray(exact.embed(exact.prepare(captions)).tokens)
    values, scales, mask = small.prepare(captions)
    assert values.dtype == np.int8 and np.abs(values.astype(int)).max() == 127
    have = np.asarray(small.embed((values, scales, mask)).tokens)
    step = np.abs(want).max(axis=-1, keepdims=True) / 127
    assert (np.abs(have - want) <= 0.5001 * step).all()
    assert np.linalg.norm(have - want) / np.linalg.norm(want) < 0.01
    assert not have[~mask].any()


def test_int8_of_zeros_and_of_huge_values():
    tokens = jnp.array([[[0.0, 0.0], [3e38, -1e38], [1e-38, -1e-38]]])
    values, scales = embedding_store.pack(tokens, "int8")
    back = embedding_store.unpack(values, scales, jnp.ones((1, 3), bool)).tokens
    assert np.isfinite(back).all()
    np.testing.assert_allclose(back, tokens, atol=3e38 / 250)


def test_embeddings_are_ragged(store):
    stored = StoredText(store)
    captions = every_caption()
    encoder = load_encoder(TEXT)
    _, mask = encoder.tokenizer(captions, 16)
    lengths = [len(stored.find(caption)[0]) for caption in captions]
    assert lengths == mask.sum(axis=1).tolist()
    manifest = stored._store.manifest
    assert manifest.notes["tokens"] >= sum(lengths)  # a caption of two shards is there twice
    payload = 4 * manifest.notes["tokens"] * encoder.dim
    size = sum(shard.size for shard in manifest.shards)
    # ArrayRecord files come in blocks of 64 KiB, one of them at the end.
    assert payload < size < 1.1 * payload + 2 * 64 * 1024 * len(manifest.shards)
    assert "tokens each" in describe(manifest)


def test_by_length_gives_the_same_up_to_rounding(tmp_path, store):
    make(tmp_path / "store", by_length=True, text=dataclasses.replace(TEXT, max_length=16))
    exact, sorted_ = StoredText(store), StoredText(tmp_path / "store")
    for caption in every_caption():
        # 1e-5: sums over other numbers of padded tokens.
        np.testing.assert_allclose(sorted_.find(caption)[0], exact.find(caption)[0], atol=1e-5)
    with pytest.raises(UserError, match="by_length was False and is now True"):
        make(store, by_length=True)


def test_long_captions_are_cut_and_counted(tmp_path):
    text = TextConfig(max_length=6)
    manifest = make(tmp_path / "store", text=text)
    assert manifest.notes["cut captions"] > 10
    assert max(len(StoredText(tmp_path / "store").find(c)[0]) for c in every_caption()) == 6


def test_a_caption_that_is_not_there_is_an_error(store):
    with pytest.raises(UserError, match=r"'a purple cow' is not in .*100 training items"):
        StoredText(store).find("a purple cow")


def test_each_difference_from_the_configuration_is_shown(store, tmp_path):
    assert len(open_store(str(store), TEXT)) >= len(every_caption())
    other = shutil.copytree(EMBEDDED["embedded"], tmp_path / "t5")
    values = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(values | {"layer_norm_epsilon": 1e-3}))
    (other / "SHA256SUMS").unlink()
    text = TextConfig(encoder=str(other), max_length=32, cleaning="if")
    with pytest.raises(UserError) as error:
        open_store(str(store), text)
    lines = str(error.value).splitlines()
    assert lines[1].startswith(f"  encoder (config.text.encoder={str(other)!r}): ")
    assert lines[2:4] == [
        "  config.text.max_length: 16 in the store, 32 now",
        "  config.text.cleaning: 'none' in the store, 'if-1' now",
    ]
    # Without the encoder's files its hashes are taken from the store.
    elsewhere = TextConfig(encoder="/on/another/machine", max_length=16)
    assert open_store(str(store), elsewhere).identity == open_store(str(store), TEXT).identity


def test_a_store_of_something_else_or_half_a_store_is_refused(store, tmp_path):
    with pytest.raises(UserError, match="not a record store"):
        open_store(str(tmp_path), TEXT)
    copy = shutil.copytree(store, tmp_path / "other")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["meta"]["kind"] = "pictures"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="does not hold text embeddings"):
        open_store(str(copy), TEXT)
    make(tmp_path / "half", process_index=0, process_count=2)
    with pytest.raises(UserError, match="not complete"):
        open_store(str(tmp_path / "half"), TEXT)


def test_damage_is_found_and_named(store, tmp_path):
    name = "shard-00001.array_record"
    cut = shutil.copytree(store, tmp_path / "cut")
    (cut / name).write_bytes((cut / name).read_bytes()[:-100])
    with pytest.raises(UserError, match=rf"data.embeddings=.*{name}.*encode_text --verify"):
        StoredText(cut)
    gone = shutil.copytree(store, tmp_path / "gone")
    (gone / name).unlink()
    with pytest.raises(UserError, match=f"{name}"):
        StoredText(gone)
    # Bytes in the middle of the records: each caption is right, or an error.
    flipped = shutil.copytree(store, tmp_path / "flipped")
    data = bytearray((flipped / name).read_bytes())
    for place in range(70_000, 150_000, 997):
        data[place] ^= 1
    (flipped / name).write_bytes(data)
    damaged, exact, errors = StoredText(flipped), StoredText(store), 0
    for caption in every_caption():
        try:
            np.testing.assert_array_equal(damaged.find(caption)[0], exact.find(caption)[0])
        except UserError as error:
            assert str(error).count("is damaged") == 1
            errors += 1
    assert errors > 5


def test_records_of_another_caption_are_refused(store):
    stored = StoredText(store)
    stored._places = np.roll(stored._places, 1)
    with pytest.raises(UserError, match="not of the caption"):
        stored.find(every_caption()[0])


def test_any_number_of_processes_makes_the_same_store(store, tmp_path):
    for index in range(3):
        manifest = make(tmp_path / "store", process_index=index, process_count=3)
        assert (manifest is None) == (index < 2)
    for file in store.iterdir():
        assert file.read_bytes() == (tmp_path / "store" / file.name).read_bytes()


def test_unreadable_items_and_several_captions(tmp_path):
    class Source:
        endless = False

        def __len__(self):
            return 6

        def captions(self, index):
            if index == 2:
                raise BadItem("no")
            return (f"a picture of {index}", "a picture")

    captions = CaptionSet("folder", Source(), Source(), 6, 0)
    manifest = make(tmp_path / "store", captions=captions)
    assert manifest.notes["captions"] == 6  # 5 and the shared one
    assert manifest.notes["repeated captions"] == 4 and manifest.notes["unreadable items"] == 1
    stored = StoredText(tmp_path / "store")
    assert len(stored.find("a picture of 5")[0]) and len(stored.find("a picture")[0])


def test_sources_give_captions_without_pictures():
    for split in ("train", "held_out"):
        source = load_source(DataConfig(), split, 8)
        for index in range(50):
            assert item_captions(source, index) == (source.item(index).caption,)


def test_an_encoder_with_damaged_weights_is_stopped(tmp_path):
    mesh = one_device()
    encoder = load_encoder(TEXT, mesh=mesh)
    params = encoder.params | {"final_norm": {"scale": jnp.full(encoder.dim, jnp.nan)}}
    encoder = dataclasses.replace(encoder, params=params)
    for dtype in embedding_store.DTYPES:
        with pytest.raises(UserError, match="not finite for the caption"):
            encode_captions(
                tmp_path / dtype, caption_set(), encoder, TEXT, mesh,
                dtype=dtype, batch_size=8, shard_size=64,
            )  # fmt: skip


def test_wrong_settings_are_refused(tmp_path, store):
    with pytest.raises(UserError, match="--dtype=float16 must be one of"):
        make(tmp_path / "a", "float16")
    with pytest.raises(UserError, match="--batch_size=9 must be a multiple of the 8 devices"):
        make(tmp_path / "a", batch_size=9, mesh=make_mesh(MeshConfig()))
    with pytest.raises(UserError, match="dtype was 'float32' and is now 'int8'"):
        make(store, "int8")
    with pytest.raises(UserError, match="max_length was 16 and is now 8"):
        make(store, text=TextConfig(max_length=8))

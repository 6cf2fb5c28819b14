"""Aspect-ratio buckets: which picture is where, in what order, and how it is cut."""

import collections
import itertools
import math
import os
import pickle
from fractions import Fraction

import layouts
import numpy as np
import pytest
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from imagen_jax.config import (
    CascadeConfig,
    DataConfig,
    MixConfig,
    StageConfig,
    from_json_dict,
    to_json_dict,
)
from imagen_jax.data import picture_sizes
from imagen_jax.data.buckets import in_buckets, load_stage_source, nearest_shape
from imagen_jax.data.formats.folder import FolderRecords
from imagen_jax.data.images import decode_crop, decode_image, stored_size
from imagen_jax.data.open import load_source
from imagen_jax.data.pipeline import batches, spread_items
from imagen_jax.errors import UserError
from imagen_jax.models import EfficientUNetConfig

SIZE, BATCH = 16, 4
# At strides of 2: 20x14 and 14x20.
ASPECTS = ("1:1", "3:2", "2:3")
SHAPES = {"1:1": (16, 16), "3:2": (14, 20), "2:3": (20, 14)}
# Width and height of the test pictures, by their number.
SIZES = [(20, 20), (30, 20), (20, 30), (33, 22), (24, 21)]
MODEL = EfficientUNetConfig(
    channels=(8,),
    num_res_blocks=(1,),
    strides=(2,),
    self_attention=(False,),
    text_attention=("none",),
)


def records_of(path, split):
    return FolderRecords(DataConfig(source="folder", path=str(path)), split)


def size_of(number: int) -> tuple[int, int]:
    return SIZES[number % len(SIZES)]


def bucket_of(number: int) -> str:
    """By the definition: the least distance between logarithms."""
    width, height = size_of(number)
    return min(
        SHAPES,
        key=lambda aspect: abs(math.log(width / height * SHAPES[aspect][0] / SHAPES[aspect][1])),
    )


def write(folder, count: int, bad=(), small=()) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        width, height = size_of(i)
        data = layouts.png(i, width=width, height=height)
        if i in small:
            data = layouts.png(i, width=width // 5, height=height // 5)
        # Cut after the header, so that the size can be read but not the picture.
        (folder / f"{i:03d}.png").write_bytes(data[:60] if i in bad else data)
        (folder / f"{i:03d}.txt").write_text(str(i))


def config(**data) -> CascadeConfig:
    settings = {"source": "folder", "aspect_buckets": ASPECTS, **data}
    stages = {"base": StageConfig(resolution=SIZE, model=MODEL)}
    return CascadeConfig(data=DataConfig(**settings), stages=stages)


def source_of(folder, **data):
    return load_stage_source(config(path=str(folder), **data), "base", "train")


def run(source, steps: int, **settings) -> list[dict]:
    settings = {"batch_size": BATCH, "image_size": SIZE, "seed": 3, "num_threads": 0, **settings}
    stream = batches(source, **settings)
    found = [next(stream) for _ in range(steps)]
    stream.close()
    return found


def numbers(found: list[dict]) -> list[list[int]]:
    return [[int(caption) for caption in batch["captions"]] for batch in found]


# --- the order --------------------------------------------------------------------------------


def test_batches_are_of_one_bucket_and_every_item_comes_once_an_epoch(tmp_path):
    count, steps = 43, 60
    write(tmp_path, count)
    members = {aspect: [i for i in range(count) if bucket_of(i) == aspect] for aspect in ASPECTS}
    assert [len(found) for found in members.values()] == [17, 17, 9]
    due = sorted(
        (Fraction(2 * j + 1, 2 * len(found)), place, aspect)
        for place, (aspect, found) in enumerate(members.items())
        for j in range(steps)
    )
    found = run(source_of(tmp_path), steps)
    streams = collections.defaultdict(list)
    for (_, _, aspect), batch, items in zip(due[:steps], found, numbers(found), strict=True):
        assert batch["image"].shape == (BATCH, *SHAPES[aspect], 3)
        streams[aspect] += items
    for aspect, items in members.items():
        stream, length = streams[aspect], len(items)
        epochs = [stream[i : i + length] for i in range(0, len(stream), length)]
        assert len(epochs) > 4
        assert all(sorted(epoch) == items for epoch in epochs[:-1])
        # A batch may continue into the next epoch: no item is lost or repeated.
        assert len(set(epochs[-1])) == len(epochs[-1])
        assert epochs[0] != epochs[1]
    assert numbers(run(source_of(tmp_path), 6, seed=4)) != numbers(found[:6])


@pytest.mark.parametrize(("step", "process_count"), [(0, 4), (1, 1), (7, 2), (22, 4)])
def test_resume_anywhere_on_any_number_of_processes(tmp_path, step, process_count):
    write(tmp_path, 23, bad={5, 6})
    options = {"flip": True}
    whole = run(source_of(tmp_path), step + 6, **options)[step:]
    parts = [
        run(source_of(tmp_path), 6, start_index=step * BATCH, rows=rows, num_threads=2, **options)
        for rows in np.split(np.arange(BATCH), process_count)
    ]
    for number, batch in enumerate(whole):
        image = np.concatenate([part[number]["image"] for part in parts])
        np.testing.assert_array_equal(image, batch["image"])
        captions = [caption for part in parts for caption in part[number]["captions"]]
        assert captions == batch["captions"]


def test_another_batch_size_repeats_or_skips_no_more_than_a_batch_of_each_bucket(tmp_path):
    count = 90
    write(tmp_path, count)
    source = source_of(tmp_path)
    before = numbers(run(source, 9))  # 36 of 90
    after = numbers(run(source, 5, batch_size=10, start_index=36))
    visits = collections.Counter(itertools.chain(*before, *after))
    twice = collections.Counter(bucket_of(i) for i, n in visits.items() if n > 1)
    assert max(visits.values()) <= 2
    assert all(n <= 10 for n in twice.values())
    # With the same batch size it continues exactly, from any position in a batch.
    assert numbers(run(source, 3, start_index=38)) == numbers(run(source, 12))[9:]


def test_worker_processes_get_the_same_buckets(tmp_path):
    write(tmp_path, 12)
    source = source_of(tmp_path)
    assert numbers(run(pickle.loads(pickle.dumps(source)), 6)) == numbers(run(source, 6))


def test_left_out_items_are_replaced_by_others_of_their_bucket(tmp_path):
    bad, small = {1, 3, 8, 10}, {11, 12}
    write(tmp_path, 40, bad=bad, small=small)
    source = source_of(tmp_path, min_side=0.5)
    found = run(source, 40)
    for batch, items in zip(found, numbers(found), strict=True):
        (aspect,) = {bucket_of(i) for i in items}
        assert batch["image"].shape[1:3] == SHAPES[aspect]
        assert not set(items) & (bad | small)
    left_out = [batch["left_out"] for batch in found]
    # Four epochs at least.
    assert sum(sum(one["bad"].values()) for one in left_out) >= 4 * len(bad)
    assert sum(one["filtered"].get("picture too small", 0) for one in left_out) >= 4 * len(small)
    assert numbers(run(source, 10, start_index=30 * BATCH)) == numbers(found)[30:]


def test_files_that_are_not_pictures_are_counted(tmp_path):
    write(tmp_path, 20)
    (tmp_path / "007.png").write_bytes(b"no picture")
    (tmp_path / "008.png").write_bytes(b"")
    found = run(source_of(tmp_path), 20)
    kinds = collections.Counter()
    for batch in found:
        kinds.update(batch["left_out"]["bad"])
    assert kinds["not a picture"] >= 3 and kinds["empty file"] >= 3


def test_a_bucket_without_a_usable_picture_is_an_error_at_the_start(tmp_path):
    write(tmp_path, 5, bad={2})
    with pytest.raises(UserError, match=r"bucket 2:3 .* in 1 attempts .* remove the bucket"):
        batches(source_of(tmp_path), batch_size=BATCH, image_size=SIZE, seed=0)


def test_parts_of_a_mix_keep_their_weights_and_epochs(tmp_path):
    write(tmp_path / "a", 10)
    write(tmp_path / "b", 30)
    for i in range(30):
        (tmp_path / "b" / f"{i:03d}.txt").write_text(str(100 + i))
    parts = {
        name: MixConfig(source="folder", path=str(tmp_path / name), weight=weight)
        for name, weight in (("a", 3.0), ("b", 1.0))
    }
    cascade = config(source="mix", mix=parts)
    source = load_stage_source(cascade, "base", "train")
    assert source.shares == (2, 2, 1) and len(source) == 40
    order = numbers(run(source, 60))
    of_a = [i for batch in order for i in batch if i < 100]
    assert len(of_a) == pytest.approx(180, abs=6)
    for batch in order:
        assert len({bucket_of(i % 100) for i in batch}) == 1
    # For each part in each bucket: every item once an epoch.
    for part, aspect in ((0, "3:2"), (100, "1:1"), (100, "2:3")):
        items = [i for batch in order for i in batch if i // 100 == part // 100]
        stream = [i for i in items if bucket_of(i % 100) == aspect]
        length = len(set(stream))
        assert length == {0: 4, 100: {"1:1": 12, "2:3": 6}.get(aspect)}[part]
        for start in range(0, len(stream) - length, length):
            assert len(set(stream[start : start + length])) == length


def test_spread_items_are_of_all_buckets_by_their_shares(tmp_path):
    write(tmp_path, 40)
    found = [bucket_of(int(item.caption)) for item in spread_items(source_of(tmp_path), 10)]
    assert found == ["1:1"] * 4 + ["3:2"] * 4 + ["2:3"] * 2
    assert len({item.caption for item in spread_items(source_of(tmp_path), 100)}) >= 38


def test_a_bucket_without_pictures_is_logged_and_never_drawn(tmp_path, caplog):
    write(tmp_path, 1)
    source = source_of(tmp_path)
    assert source.aspects == ("1:1",) and source.shares == (1,)
    assert "no picture is nearest to the bucket 3:2" in caplog.text
    assert source.describe() == "1:1 16x16 (1 pictures)"


def test_crops_are_cut_from_every_shape(tmp_path):
    write(tmp_path, 40)
    for batch in run(source_of(tmp_path), 10, crop_size=6, crop_multiple=2):
        assert batch["image"].shape == (BATCH, 6, 6, 3)
    with pytest.raises(UserError, match="crop size 16 does not fit pictures of 14"):
        run(source_of(tmp_path), 1, crop_size=16)


# --- the bucket and the crop of a picture ---------------------------------------------------------


def test_the_nearest_shape_by_the_ratio_of_ratios():
    shapes = {"1:1": (64, 64), "3:2": (56, 80), "2:3": (80, 56), "16:9": (48, 88)}
    draw = np.random.default_rng(0)
    sizes = draw.integers(1, 4000, (3000, 2))
    ratios = np.array([w / h for h, w in shapes.values()])
    distances = np.abs(np.log(sizes[:, :1] / sizes[:, 1:] / ratios))
    # None of these is within rounding error of a border.
    near = np.sort(distances, axis=1)
    assert (near[:, 1] - near[:, 0]).min() > 1e-9
    np.testing.assert_array_equal(nearest_shape(sizes, shapes), distances.argmin(axis=1))
    assert nearest_shape(np.array([[0, 0], [0, 9], [2**31 - 1, 1]]), shapes).tolist() == [0, 0, 3]


def ramp(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards, one step a pixel."""
    down, across = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([across, down, 0 * down], axis=-1).astype(np.uint8))


@pytest.mark.parametrize("size", [(200, 100), (100, 200), (210, 140), (97, 31), (20, 30)])
@pytest.mark.parametrize("shape", [(14, 20), (20, 14), (16, 16), (6, 10)])
def test_the_centre_is_cropped_without_stretching(size, shape):
    width, height = size
    down, across = shape
    image = decode_crop(layouts.encoded(ramp(width, height)), down, across).astype(float)
    assert image.shape == (down, across, 3)
    # Source pixels for each pixel of the result, the same along both axes and as many as fit.
    scale = min(width / across, height / down)
    inner = slice(1, -1)
    steps_right = np.diff(image[:, inner, 0], axis=1).mean()
    steps_down = np.diff(image[inner, :, 1], axis=0).mean()
    # The crop has whole pixels, and the values are whole numbers.
    assert steps_right == pytest.approx(scale, abs=0.5 / across + 1 / (across - 3))
    assert steps_down == pytest.approx(scale, abs=0.5 / down + 1 / (down - 3))
    assert image[..., 0].mean() == pytest.approx((width - 1) / 2, abs=1)
    assert image[..., 1].mean() == pytest.approx((height - 1) / 2, abs=1)


def test_the_square_bucket_is_decoded_as_without_buckets():
    for kind in ("PNG", "JPEG"):
        data = layouts.encoded(ramp(97, 60), kind)
        np.testing.assert_array_equal(decode_crop(data, 16, 16), decode_image(data, 16))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_that_lie_on_their_side(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = layouts.encoded(ramp(240, 120), kind, exif=exif)
    upright = (120, 240) if orientation >= 5 else (240, 120)
    assert stored_size(data) == upright
    seen = []
    image = decode_crop(data, 14, 20, lambda *size: seen.append(size))
    assert seen == [upright] and image.shape == (14, 20, 3)
    # 240x120 is cropped to 171x120, and 120x240 to 120x84.
    red, green = (np.ptp(image[..., channel].astype(int)) for channel in (0, 1))
    if orientation < 5:
        assert (red, green) == pytest.approx((171 * 19 / 20, 120 * 13 / 14), abs=6)
    else:
        assert (green, red) == pytest.approx((120 * 19 / 20, 84 * 13 / 14), abs=6)


@pytest.mark.parametrize(("orientation", "asked"), [(1, (40, 28)), (6, (28, 40))])
def test_the_decoder_is_asked_for_twice_the_size_as_the_picture_lies(
    monkeypatch, orientation, asked
):
    sizes = []
    monkeypatch.setattr(JpegImageFile, "draft", lambda self, mode, size: sizes.append(size))
    exif = Image.Exif()
    exif[0x0112] = orientation
    decode_crop(layouts.encoded(ramp(240, 120), "JPEG", exif=exif), 14, 20)
    assert sizes == [asked]


def test_min_side_leaves_out_pictures_that_a_bucket_would_enlarge(tmp_path):
    write(tmp_path, 10)
    (tmp_path / "001.png").write_bytes(layouts.png(1, width=20, height=14))
    (tmp_path / "002.png").write_bytes(layouts.png(2, width=14, height=19))
    (tmp_path / "003.png").write_bytes(layouts.png(3, width=19, height=14))
    found = run(source_of(tmp_path, min_side=1.0), 24)
    items = set(itertools.chain(*numbers(found)))
    assert 1 in items and not items & {2, 3}


# --- the stored sizes ---------------------------------------------------------------------------


def count_reads(monkeypatch) -> list[int]:
    """A list of the indices whose headers are read from now on."""
    reads = []
    head = FolderRecords.head

    def counted(self, index, size):
        reads.append(index)
        return head(self, index, size)

    monkeypatch.setattr(FolderRecords, "head", counted)
    return reads


def test_sizes_are_read_once_and_again_where_a_file_changed(tmp_path, monkeypatch):
    write(tmp_path, 12)
    reads = count_reads(monkeypatch)
    table = tmp_path / ".imagen_jax" / "picture-sizes.table"

    def sizes():
        reads.clear()
        found = picture_sizes.load_sizes(records_of(tmp_path, "train"))
        return found.tolist()

    expected = [list(size_of(i)) for i in range(12)]
    assert sizes() == expected and len(reads) == 12 and table.is_file()
    assert sizes() == expected and reads == []
    (tmp_path / "003.png").write_bytes(layouts.png(3, width=21, height=22))
    (tmp_path / "0025.png").write_bytes(layouts.png(3, width=5, height=6))
    (tmp_path / "0025.txt").write_text("new")
    expected[3] = [21, 22]
    expected.insert(3, [5, 6])
    assert sizes() == expected and sorted(reads) == [3, 4]
    # After damage of any kind, the sizes are read again.
    data = table.read_bytes()
    for damaged in (b"", data[:50], data[:-3], data[:40] + b"x" + data[41:], data + bytes(16)):
        table.write_bytes(damaged)
        assert sizes() == expected and len(reads) == 13
        assert table.read_bytes() == data or len(table.read_bytes()) < len(data)
        assert sizes() == expected and reads == []
    # Only the stamp of a touched file changes.
    stamps = records_of(tmp_path, "train").stamps()
    assert len(set(stamps.tolist())) == 13
    os.utime(tmp_path / "001.png")
    assert (records_of(tmp_path, "train").stamps() != stamps).sum() == 1


def test_sizes_of_a_read_only_set_are_stored_in_the_cache(tmp_path, monkeypatch):
    write(tmp_path / "set", 6)
    # A file in place of the folder makes writing fail.
    (tmp_path / "set" / ".imagen_jax").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    reads = count_reads(monkeypatch)
    for expected in (6, 0):
        reads.clear()
        picture_sizes.load_sizes(records_of(tmp_path / "set", "train"))
        assert len(reads) == expected
    assert len(list((tmp_path / "cache").rglob("*.table"))) == 1


def test_an_unfinished_table_is_stored(tmp_path, monkeypatch):
    write(tmp_path, 12)
    monkeypatch.setattr(picture_sizes, "_SAVE_EVERY", 0.0)
    monkeypatch.setattr(picture_sizes, "_CHUNK", 5)
    reads = count_reads(monkeypatch)
    head = FolderRecords.head

    class Killed(BaseException):
        pass

    def killed(self, index, size):
        if index == 11:
            raise Killed
        return head(self, index, size)

    monkeypatch.setattr(FolderRecords, "head", killed)
    with pytest.raises(Killed):
        picture_sizes.load_sizes(records_of(tmp_path, "train"))
    monkeypatch.setattr(FolderRecords, "head", head)
    reads.clear()
    sizes = picture_sizes.load_sizes(records_of(tmp_path, "train"))
    assert sizes.tolist() == [list(size_of(i)) for i in range(12)]
    assert sorted(reads) == [10, 11]


def test_long_headers_and_other_formats_are_read_whole(tmp_path):
    write(tmp_path, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    image = layouts.picture(0, 30, 20)
    # Pillow writes an ICC profile before the size, in several segments.
    (tmp_path / "000.png").write_bytes(
        layouts.encoded(image, "JPEG", icc_profile=bytes(200_000), exif=exif)
    )
    (tmp_path / "001.png").write_bytes(layouts.encoded(image, "WEBP"))
    (tmp_path / "002.png").write_bytes(layouts.encoded(image, "GIF"))
    sizes = picture_sizes.load_sizes(records_of(tmp_path, "train"))
    assert sizes.tolist() == [[20, 30], [30, 20], [30, 20]]


def test_tars_have_buckets_and_the_stamps_of_their_shards(tmp_path):
    count = 110  # enough to hold some out
    files = []
    for i in range(count):
        width, height = size_of(i)
        files.append((f"{i}.png", layouts.png(i, width=width, height=height)))
        files.append((f"{i}.txt", str(i).encode()))
    for shard in range(2):
        layouts.write_tar(tmp_path / f"{shard}.tar", files[shard * count : (shard + 1) * count])
    cascade = config(source="webdataset", path=str(tmp_path))
    train, held_out = (load_stage_source(cascade, "base", s) for s in ("train", "held_out"))
    assert (len(train), len(held_out)) == (105, 5)
    for source in (train, held_out):
        for batch, items in zip(found := run(source, 9), numbers(found), strict=True):
            assert {SHAPES[bucket_of(i)] for i in items} == {batch["image"].shape[1:3]}
    records = load_source(cascade.data, "train", SIZE).records
    stamps = records.stamps()
    assert len(set(stamps.tolist())) == 105
    os.utime(tmp_path / "1.tar")
    changed = load_source(cascade.data, "train", SIZE).records.stamps() != stamps
    assert changed.tolist() == [index >= 53 for index in range(105)]


# --- the config ---------------------------------------------------------------------------------


def two_stages(aspects, resolution=32, **train) -> CascadeConfig:
    values = to_json_dict(
        CascadeConfig(
            data=DataConfig(source="folder", aspect_buckets=aspects),
            stages={
                "base": StageConfig(resolution=resolution),
                "sr": StageConfig(resolution=4 * resolution, low_resolution=resolution),
            },
        )
    )
    values["stages"]["sr"]["train"] |= train
    return from_json_dict(values)


def test_shapes_have_the_area_of_the_square_and_every_stage_the_same_ratio():
    cascade = two_stages(("1:1", "3:2", "2:3", "16:9"), resolution=64)
    base, sr = (cascade.shapes(name) for name in ("base", "sr"))
    assert base == {"1:1": (64, 64), "3:2": (56, 80), "2:3": (80, 56), "16:9": (48, 88)}
    assert sr == {aspect: (4 * h, 4 * w) for aspect, (h, w) in base.items()}
    assert two_stages(()).shapes("sr") == {"1:1": (128, 128)}
    assert list(two_stages(("6:4", "1:1")).shapes("base")) == ["3:2", "1:1"]


@pytest.mark.parametrize(
    ("aspects", "message"),
    [
        (("1:1", "3/2"), "'3/2' is no aspect ratio; write width:height"),
        (("1:1", "0:2"), "'0:2' is no aspect ratio"),
        (("1:1", "1.5:1"), "'1.5:1' is no aspect ratio"),
        (("3:2", "2:3"), "lacks '1:1'"),
        (("1:1", "3:2", "6:4"), "3:2 and 3:2 both come to"),
        (("1:1", "8:7"), "1:1 and 8:7 both come to 32x32, since sides are multiples of 8"),
        (("1:1", "40:1"), "40:1 has no shape near 32x32 whose sides are multiples of 8"),
    ],
)
def test_buckets_that_do_not_fit(aspects, message):
    with pytest.raises(UserError, match=message):
        two_stages(aspects)


def test_settings_that_contradict_buckets():
    with pytest.raises(UserError, match=r"crop_size=128 is larger than the 3:2 pictures .* 160x96"):
        two_stages(("1:1", "3:2"), crop_size=128)
    two_stages(("1:1", "3:2"), crop_size=96)
    values = to_json_dict(config())
    values["data"]["source"] = "shapes"
    with pytest.raises(UserError, match="source='shapes': its pictures are drawn"):
        from_json_dict(values)
    values["data"] |= {"source": "mix", "mix": {"x": {"source": "emoji"}}}
    with pytest.raises(UserError, match=r"mix.x.source='emoji'"):
        from_json_dict(values)
    with pytest.raises(UserError, match="needs stored pictures"):
        in_buckets(load_source(DataConfig(), "train", SIZE), SHAPES)

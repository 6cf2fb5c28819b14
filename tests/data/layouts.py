"""Small data sets on disk, in the layouts of the tools that write them."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = ("red", "green", "blue", "white")


def picture(number: int, width: int = 20, height: int = 20) -> Image.Image:
    """A picture of one colour with a white corner; each number has its own colour."""
    image = Image.new("RGB", (width, height), (number * 7 % 256, number * 29 % 256, number % 256))
    image.putpixel((0, 0), (255, 255, 255))
    return image


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png(number: int, **size) -> bytes:
    return encoded(picture(number, **size))


def pixels(number: int, size: int = 20) -> np.ndarray:
    return np.asarray(picture(number, size, size))


def caption(number: int) -> str:
    return f"picture number {number} in {COLOURS[number % 4]}"


def add_file(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


def write_tar(path: Path, files: list[tuple[str, bytes]], layout=tarfile.GNU_FORMAT) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=layout) as tar:
        for name, data in files:
            add_file(tar, name, data)


def img2dataset_json(number: int, **values) -> bytes:
    """The metadata that img2dataset writes beside a picture."""
    entry = {
        "url": f"https://example.org/{number}.jpg",
        "caption": caption(number),
        "key": f"{number:09d}",
        "status": "success",
        "error_message": None,
        "width": 20,
        "height": 20,
        "original_width": 40,
        "original_height": 40,
        "aesthetic": number / 10,
    }
    return json.dumps(entry | values).encode()


def img2dataset_files(number: int) -> list[tuple[str, bytes]]:
    """One item, in the order in which webdataset's writer puts its files."""
    key = f"{number:09d}"
    return [
        (f"{key}.png", png(number)),
        (f"{key}.json", img2dataset_json(number)),
        (f"{key}.txt", caption(number).encode()),
    ]


def write_img2dataset_tars(folder: Path, count: int, per_shard: int = 10) -> None:
    for shard, start in enumerate(range(0, count, per_shard)):
        numbers = range(start, min(start + per_shard, count))
        files = [file for number in numbers for file in img2dataset_files(number)]
        write_tar(folder / f"{shard:05d}.tar", files)
        (folder / f"{shard:05d}_stats.json").write_text("{}")


def write_flawed_tars(folder: Path) -> None:
    """Thirty items: 4 has no caption, 7 is cut, 9 is small, 14 is divided between two tars."""
    files = []
    for i in range(30):
        item = dict(img2dataset_files(i))
        key = f"{i:09d}"
        if i == 4:
            del item[f"{key}.json"]
            item[f"{key}.txt"] = b"  "
        if i == 7:
            item[f"{key}.png"] = item[f"{key}.png"][:50]
        if i == 9:
            item[f"{key}.png"] = png(i, width=5, height=30)
        files += item.items()
    write_tar(folder / "0.tar", files[:42])
    write_tar(folder / "1.tar", files[42:])


def write_img2dataset_parquet(folder: Path, count: int, per_shard: int = 10) -> None:
    """`--output_format=parquet`: the picture is the column named after its format."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    for shard, start in enumerate(range(0, count, per_shard)):
        rows = []
        for number in range(start, min(start + per_shard, count)):
            values = json.loads(img2dataset_json(number))
            rows.append(values | {"jpg": png(number)})
        pq.write_table(
            pa.Table.from_pylist(rows), folder / f"{shard:05d}.parquet", row_group_size=4
        )


def hugging_face_dataset(count: int):
    """With an Image feature, which is stored as a struct of bytes and path."""
    import datasets

    columns = {
        "image": [{"bytes": png(i), "path": f"{i}.png"} for i in range(count)],
        "text": [caption(i) for i in range(count)],
        "score": [i / 10 for i in range(count)],
    }
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "text": datasets.Value("string"),
            "score": datasets.Value("float32"),
        }
    )
    return datasets.Dataset.from_dict(columns, features=features)


def tfds_builder(folder: Path, count: int, file_format: str = "array_record"):
    """A prepared data set with the features of `coco_captions`."""
    import tensorflow_datasets as tfds

    class CocoLike(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.1.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(),
                "image/filename": tfds.features.Text(),
                "captions": tfds.features.Sequence({"id": np.int64, "text": tfds.features.Text()}),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
            )

        def _split_generators(self, manager):
            return {"train": self._generate_examples(0), "val": self._generate_examples(1000)}

        def _generate_examples(self, start):
            for i in range(start, start + count):
                captions = [{"id": k, "text": f"{caption(i)}, {k}"} for k in range(5)]
                yield (
                    i,
                    {
                        "image": io.BytesIO(png(i)),
                        "image/filename": f"{i}.png",
                        "captions": captions,
                    },
                )

    builder = CocoLike(data_dir=str(folder), file_format=file_format)
    builder.download_and_prepare()
    return builder

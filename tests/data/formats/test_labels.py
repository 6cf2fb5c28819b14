"""Sets without captions: the names of classes, or nothing."""

import json

import layouts
import numpy as np
import pytest

from imagen_jax.config import DataConfig, MixConfig
from imagen_jax.data.formats.labels import hugging_face_names, label_words
from imagen_jax.data.open import load_records, load_source
from imagen_jax.data.prepare import prepare
from imagen_jax.data.source import BadItem
from imagen_jax.errors import UserError

EXTRAS = pytest.mark.slow
NAMES = ("cat", "golden_retriever", "red fox")


def captions(source, path, **settings):
    records = load_records(DataConfig(source=source, path=str(path), **settings), None)
    return [records.record(i).captions for i in range(len(records))]


def test_words_of_labels():
    assert label_words(1, NAMES) == label_words(b"1", NAMES) == "golden retriever"
    assert label_words(np.int64(2), NAMES) == label_words(2.0, NAMES) == "red fox"
    assert label_words([0, 2], NAMES) == "cat, red fox"
    assert label_words("snow_leopard ", ()) == "snow leopard"
    for nothing in (-1, 3, None, float("nan"), [], "", {}):
        assert label_words(nothing, NAMES) == ""


def test_names_in_the_metadata_of_hugging_face():
    label = {"names": ["a", "b"], "_type": "ClassLabel"}
    features = {
        "label": label,
        "many": {"feature": label, "_type": "Sequence"},
        "objects": {"feature": {"category": label}, "_type": "Sequence"},
        "text": {"dtype": "string", "_type": "Value"},
    }
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    for field in ("label", "many", "objects/category"):
        assert hugging_face_names(metadata, field) == ("a", "b")
    assert hugging_face_names(metadata, "text") == hugging_face_names(metadata, "gone") == ()
    assert (
        hugging_face_names(None, "label") == hugging_face_names({b"huggingface": b"["}, "x") == ()
    )


def write_classes(path):
    for number, name in enumerate(("cat", "red_fox", "cat")):
        (path / "train" / name).mkdir(parents=True, exist_ok=True)
        (path / "train" / name / f"{number}.png").write_bytes(layouts.png(number))


def test_folders_by_class(tmp_path):
    write_classes(tmp_path)
    assert captions("folder", tmp_path, captions="labels") == [("cat",), ("cat",), ("red fox",)]
    assert captions("folder", tmp_path, captions="none") == [("",)] * 3
    with pytest.raises(UserError, match=r"3 pictures without a caption.*captions to 'labels'"):
        captions("folder", tmp_path)
    (tmp_path / "loose.png").write_bytes(layouts.png(9))
    settings = {"source": "folder", "path": str(tmp_path), "captions": "labels"}
    records = load_records(DataConfig(**settings), None)
    assert dict(records.skipped) == {"pictures that are not in the folder of a class": 1}


def test_tars(tmp_path):
    items = [(f"{i}.png", layouts.png(i)) for i in range(3)]
    layouts.write_tar(tmp_path / "bare" / "0.tar", items)
    assert captions("webdataset", tmp_path / "bare", captions="none") == [("",)] * 3
    files = [f for i, item in enumerate(items) for f in (item, (f"{i}.cls", b"%d\n" % i))]
    layouts.write_tar(tmp_path / "cls" / "0.tar", files)
    named = captions("webdataset", tmp_path / "cls", captions="labels", label_names=NAMES)
    assert named == [("cat",), ("golden retriever",), ("red fox",)]
    with pytest.raises(UserError, match=r"no label in words \(0, 1, 2\).*label_names"):
        captions("webdataset", tmp_path / "cls", captions="labels")
    rows = [(f"{i}.json", json.dumps({"label": i, "kind": f"k{i}"}).encode()) for i in range(3)]
    files = [f for pair in zip(items, rows, strict=True) for f in pair]
    layouts.write_tar(tmp_path / "json" / "0.tar", files)
    fields = {"captions": "labels", "label_names": NAMES}
    assert captions("webdataset", tmp_path / "json", **fields) == named
    kinds = captions("webdataset", tmp_path / "json", captions="labels", label_field="kind")
    assert kinds == [("k0",), ("k1",), ("k2",)]
    # Reading as text afterwards takes another index.
    with pytest.raises(UserError, match="no picture with a caption"):
        captions("webdataset", tmp_path / "bare")


def test_a_set_without_captions_is_read_and_stored(tmp_path):
    write_classes(tmp_path / "set")
    config = DataConfig(
        source="folder", path=str(tmp_path / "set"), captions="none", min_caption_length=5
    )
    source = load_source(config, "train", 8)
    assert [source.item(i).captions for i in range(3)] == [("",)] * 3
    prepare(config, str(tmp_path / "store"), image_size=8, num_threads=1)
    assert captions("array_record", tmp_path / "store") == [("",)] * 3
    labelled = DataConfig(source="folder", path=str(tmp_path / "set"), captions="labels")
    prepare(labelled, str(tmp_path / "labelled"), image_size=8, num_threads=1)
    assert captions("array_record", tmp_path / "labelled")[0] == ("cat",)
    assert captions("array_record", tmp_path / "labelled", captions="none")[0] == ("",)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "folder", "captions": "words"}, "captions='words' must be one of text, labels"),
        ({"source": "folder", "label_names": ("a",)}, "only with captions='labels'"),
        ({"source": "parquet", "label_field": "label"}, "only with captions='labels'"),
        ({"source": "folder", "captions": "labels", "label_field": "x"}, "picture's folder"),
        ({"source": "parquet", "captions": "none", "caption_fields": ("a",)}, "caption_fields"),
        ({"source": "shapes", "captions": "none"}, "are drawn"),
        ({"source": "array_record", "captions": "labels"}, "for prepare_data"),
        ({"source": "mix", "captions": "none", "mix": {"a": MixConfig(source="folder")}}, "each"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        DataConfig(**settings)


def hugging_face_set():
    import datasets

    columns = {
        "image": [{"bytes": layouts.png(i), "path": None} for i in range(4)],
        "label": [0, 1, 2, -1],
        "kind": ["a", "b_c", "d", "e"],
        "plain": [0, 1, 2, 0],
    }
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=list(NAMES)),
            "kind": datasets.Value("string"),
            "plain": datasets.Value("int64"),
        }
    )
    return datasets.Dataset.from_dict(columns, features=features)


@EXTRAS
@pytest.mark.parametrize("source", ["parquet", "arrow"])
def test_class_labels_of_hugging_face(tmp_path, source):
    data = hugging_face_set()
    if source == "arrow":
        data.save_to_disk(tmp_path)
    else:
        data.to_parquet(tmp_path / "train.parquet")
    words = [("cat",), ("golden retriever",), ("red fox",)]
    assert captions(source, tmp_path, captions="labels") == [*words, ()]
    kinds = captions(source, tmp_path, captions="labels", label_field="kind")
    assert kinds == [("a",), ("b c",), ("d",), ("e",)]
    assert captions(source, tmp_path, captions="none") == [("",)] * 4
    plain = {"captions": "labels", "label_field": "plain"}
    with pytest.raises(UserError, match=r"column plain holds numbers.*label_names"):
        captions(source, tmp_path, **plain)
    assert captions(source, tmp_path, **plain, label_names=NAMES) == [*words, ("cat",)]
    with pytest.raises(UserError, match=r"no column of captions.*image, label.*'labels'"):
        captions(source, tmp_path)
    with pytest.raises(UserError, match=r"no column gone of labels; it has image, label"):
        captions(source, tmp_path, captions="labels", label_field="gone")


@EXTRAS
def test_class_labels_of_tfds(tmp_path):
    import tensorflow_datasets as tfds

    class Labelled(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(),
                "label": tfds.features.ClassLabel(names=NAMES),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
            )

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            import io

            for i in range(3):
                yield i, {"image": io.BytesIO(layouts.png(i)), "label": i}

    builder = Labelled(data_dir=str(tmp_path), file_format="array_record")
    builder.download_and_prepare()
    directory = builder.data_path
    assert captions("tfds", directory, captions="labels") == [
        ("cat",),
        ("golden retriever",),
        ("red fox",),
    ]
    assert captions("tfds", directory, captions="none") == [("",)] * 3
    with pytest.raises(UserError, match="no column of captions"):
        captions("tfds", directory)


@EXTRAS
def test_a_row_without_a_label_is_bad(tmp_path):
    hugging_face_set().to_parquet(tmp_path / "a.parquet")
    config = DataConfig(source="parquet", path=str(tmp_path), captions="labels")
    with pytest.raises(BadItem, match="no caption"):
        load_source(config, "train", 8).item(3)

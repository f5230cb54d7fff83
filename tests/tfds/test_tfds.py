"""A prepared dataset is read by name and by directory, without TensorFlow."""

import sys

import pytest
import tensorflow_datasets as tfds

from lmjax.data.sources import OtherFiles, Tfds
from lmjax.errors import UserError

TEXTS = [f"example {i} é" for i in range(50)]


class Little(tfds.core.GeneratorBasedBuilder):
    """Fifty texts."""

    VERSION = tfds.core.Version("1.0.0")
    name = "little"

    def _info(self):
        features = tfds.features.FeaturesDict(
            {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(names=["bad", "good"])}
        )
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, _):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i, text in enumerate(TEXTS):
            yield i, {"text": text, "label": i % 2}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    builder = Little(data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare()
    return folder, builder.data_dir


def texts(source):
    return [document.text for document in source.documents()]


def test_by_directory_and_by_name(prepared):
    folder, directory = prepared
    assert sorted(texts(Tfds(directory=str(directory)))) == sorted(TEXTS)
    assert texts(Tfds(name="little", data_dir=str(folder))) == texts(Tfds(directory=str(directory)))
    assert len(texts(Tfds(directory=str(directory), part="train[:10]"))) == 10
    assert "tensorflow" not in sys.modules


def test_records_have_the_names_of_labels(prepared):
    _, directory = prepared
    records = list(Tfds(directory=str(directory), held_out=OtherFiles(path="train[:10]")).split_records())
    assert {record.fields["text"]: record.fields["label"] for _, record in records} == {
        text: ("bad", "good")[i % 2] for i, text in enumerate(TEXTS)
    }
    assert [split for split, _ in records] == ["train"] * 50 + ["held_out"] * 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"field": "body"}, "no field 'body'; it has 'label', 'text'"),
        ({"part": "nope"}, "cannot be read as a prepared dataset"),
        ({"directory": "/nowhere"}, "/nowhere cannot be read as a prepared dataset"),
    ],
)
def test_mistakes(prepared, change, message):
    _, directory = prepared
    with pytest.raises(UserError, match=message):
        texts(Tfds(**{"directory": str(directory)} | change))

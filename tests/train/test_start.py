"""init_from: training goes on from a trained model, of either kind."""

import json
from dataclasses import replace

import numpy as np
import pytest

from lmjax import trees
from lmjax.errors import UserError
from lmjax.interop.write import export
from lmjax.loaded import load_model
from lmjax.tokenizers import Bytes, HuggingFace
from lmjax.train import loop
from tests import tiny

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(text, run, Hugging Face directory) of the same model."""
    place = tmp_path_factory.mktemp("trained")
    (place / "text.txt").write_text(tiny.text(9_000), encoding="utf-8")
    loop.train(tiny.experiment(place / "text.txt", steps=6), place / "run")
    loaded = load_model(place / "run")
    export(loaded.experiment.model, loaded.params, loaded.tokenizer, place / "hf")
    return place / "text.txt", place / "run", place / "hf"


def losses(run):
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]


def test_starts_where_the_other_ended_from_either_kind(trained, tmp_path):
    text, run, hf = trained
    loop.train(tiny.experiment(text, steps=3, init_from=str(run)), tmp_path / "from_run")
    loop.train(
        tiny.experiment(text, steps=3, init_from=str(hf), tokenizer=HuggingFace(path=str(hf))), tmp_path / "from_hf"
    )
    a, b = (losses(tmp_path / name) for name in ("from_run", "from_hf"))
    assert a == b
    assert a[0] < losses(run)[0] - 0.05
    one, other = (load_model(tmp_path / name).params for name in ("from_run", "from_hf"))
    for (path, x), (_, y) in zip(trees.named_leaves(one), trees.named_leaves(other), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=path)
    # a second start resumes, and needs the first model no more
    run.rename(run.with_name("gone"))
    loop.train(tiny.experiment(text, steps=4, init_from=str(run)), tmp_path / "from_run")
    run.with_name("gone").rename(run)
    assert len(losses(tmp_path / "from_run")) == 4


def test_another_model_or_tokenizer_is_refused_before_anything_is_written(trained, tmp_path):
    text, run, hf = trained
    wide = replace(tiny.experiment(text).model, width=32)
    wide = tiny.experiment(text, init_from=str(run), model=wide)
    with pytest.raises(UserError, match="is another model: model.width: 16 -> 32"):
        loop.train(wide, tmp_path / "run")
    with pytest.raises(UserError, match="has another tokenizer"):
        loop.train(tiny.experiment(text, init_from=str(hf), tokenizer=Bytes()), tmp_path / "run")
    with pytest.raises(UserError, match="nowhere: no such directory"):
        loop.train(tiny.experiment(text, init_from="nowhere"), tmp_path / "run")
    assert not (tmp_path / "run" / "experiment.json").exists()

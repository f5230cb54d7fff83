"""Every family gives the logits that transformers gave when the golden files were written."""

import numpy as np
import pytest

import lmjax
from tests.interop import golden
from tests.interop.directories import CONFIGS


@pytest.mark.parametrize("name", golden.names())
def test_the_logits_of_transformers(name, tmp_path):
    expected = golden.read(name, tmp_path / "model")
    more = {"source": golden.ids()} if name.startswith("t5") else {}
    logits = np.asarray(lmjax.load(tmp_path / "model")(golden.ids(), **more).logits)[0]
    assert np.abs(expected).max() > (5 if name != "t5" else 1)
    # the files keep 6 digits
    assert np.abs(logits - expected).max() < 2e-5 * np.abs(expected).max()


def test_every_family_has_a_golden_file():
    families = {name.removesuffix("_text") for name in CONFIGS} | {"t5"}
    assert families <= set(golden.names())

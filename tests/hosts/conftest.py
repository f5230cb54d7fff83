import pytest

from tests import tiny
from tests.hosts.processes import EXPERIMENT, STEPS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a module's runs lie, with a text and its experiment."""
    folder = tmp_path_factory.mktemp("hosts")
    (folder / "text.txt").write_text(tiny.text(20_000))
    (folder / "experiment.py").write_text(EXPERIMENT.format(text=str(folder / "text.txt"), steps=STEPS))
    return folder


@pytest.fixture(scope="module")
def config(folder):
    return folder / "experiment.py"

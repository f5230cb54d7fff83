"""Progress changes nothing that is done, and is told where there is time to read it."""

import sys

import pytest

from lmjax.evaluate import progress


@pytest.mark.parametrize("terminal", [False, True])
def test_items_come_as_they_are(terminal, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    assert list(progress.followed([[1, 2], [3]], 3, len)) == [[1, 2], [3]]
    assert "of" not in capsys.readouterr().out


def test_lines_from_time_to_time_where_there_is_no_terminal(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0)
    list(progress.followed([[0] * 1500, [1] * 500], 2000, len))
    assert capsys.readouterr().out == "1,500 of 2,000\n2,000 of 2,000\n"

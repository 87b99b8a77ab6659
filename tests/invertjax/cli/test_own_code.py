"""Code of the reader's own, named on a command line."""

import sys

import pytest
from support import refusals

from invertjax.cli import own_code


def test_modules_of_the_current_folder_are_found(tmp_path, monkeypatch):
    """However Python was started: a console script has not the folder on its path."""
    (tmp_path / "mine_only_here.py").write_text("net = max")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    assert own_code.imported("model", "mine_only_here:net", "name") is max
    monkeypatch.delitem(sys.modules, "mine_only_here")


@pytest.mark.parametrize(
    "text, named",
    [
        ("module:name", True),
        ("a.b_c.d2:Name", True),
        ("module", False),
        ("module:", False),
        (":name", False),
        ("a/b.py:name", False),
        ("a b:name", False),
        ("a.:name", False),
        ("C:\\net.py", False),
    ],
)
def test_the_form_of_a_name(text, named):
    assert own_code.is_named(text) == named


def test_what_cannot_be_imported_is_a_line(tmp_path, monkeypatch):
    (tmp_path / "breaks.py").write_text("raise SystemError('two\\nlines')")
    monkeypatch.syspath_prepend(tmp_path)
    for text, reason in (
        ("breaks:net", "SystemError: two lines"),
        ("no_such:net", "ModuleNotFoundError"),
        ("math:net", "AttributeError"),
    ):
        refusals.says(
            f"--model={text}: expected module:name that can be imported",
            reason,
            call=lambda text=text: own_code.imported("model", text, "name"),
        )


def test_the_source_of_a_name():
    assert own_code.source("support.own_models:Plain").endswith("own_models.py")
    assert own_code.source("mlp") is own_code.source(None) is None

"""`NAME:VALUE` becomes a protection at the edge, and goes back as it was typed."""

import pytest

from invertjax.cli import defense_text
from invertjax.defenses.protections import PROTECTIONS


@pytest.mark.parametrize(
    "text, value",
    [
        ("clip:1e1", 10.0),
        ("prune:.5", 0.5),
        ("sign", None),
        ("dp_sgd:0.6", (0.6, 1.0)),
        ("dp_sgd:0.6,3", (0.6, 3.0)),
        ("mixup:4", 4),
        ("ats:3-1-7", "3-1-7"),
    ],
)
def test_texts(text, value):
    found = defense_text.parse(text)
    assert found.value == value and str(found) == text
    assert found.name == text.partition(":")[0]


@pytest.mark.parametrize(
    "text, says",
    [
        ("prone:0.9", "--defense=prone:0.9 is unknown.*did you mean 'prune'"),
        ("sign:1", "--defense=sign:1: expected sign without a value"),
        ("sign:", "expected sign without a value"),
        ("ats:", "expected ats:VALUE, transformations"),
        ("prune:1", r"--defense=prune:1: expected prune:VALUE.*\[0, 1\)"),
        ("mixup:2.5", "whole number of images"),
        ("dp_sgd:1,2,3", "noise multiplier"),
    ],
)
def test_what_is_no_defense_is_refused(text, says):
    with pytest.raises(ValueError, match=says):
        defense_text.parse(text)


def test_help_names_every_defense_once():
    texts = [defense_text.described(sort) for sort in ("update", "client", "network")]
    for name in PROTECTIONS:
        assert sum(f"{name}, " in f"; {text}" for text in texts) >= 1
    assert "prune, the share set to zero" in texts[0] and "prune" not in texts[1]

"""The vocabulary."""

from invertjax.base import Stop


def test_reasons_to_stop_are_told_apart_and_named():
    values = {
        name: value
        for name, value in vars(Stop).items()
        if name.isupper() and name != "NAMES"
    }
    assert sorted(values.values()) == list(range(len(Stop.NAMES)))
    assert len(set(Stop.NAMES)) == len(Stop.NAMES)
    for name in ("BUDGET", "INTERRUPTED", "DROPPED", "PLATEAU", "CONVERGED"):
        assert Stop.NAMES[values[name]] == name.lower()
    assert Stop.NAMES[Stop.NON_FINITE] == "non-finite"

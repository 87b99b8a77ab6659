"""Tables as text."""

from invertjax.reports import text


def test_tables_are_aligned():
    found = text.table([("a", "1.0"), ("bcd", "22.5")], ("name", "dB"))
    assert found.splitlines() == [
        "name    dB",
        "----  ----",
        "a      1.0",
        "bcd   22.5",
    ]

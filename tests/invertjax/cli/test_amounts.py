"""What large numbers take, in words."""

import pytest

from invertjax.cli import amounts


@pytest.mark.parametrize(
    "count, words",
    [
        (0, "0 GB"),
        (1.5e9, "1.5 GB"),
        (999e9, "999 GB"),
        (2e12, "2 TB"),
        (4e40, "4e+22"),
    ],
)
def test_bytes_have_the_unit_that_fits(count, words):
    assert amounts.size(count).startswith(words)


def test_times_are_hours_or_years():
    words = amounts.seconds(1e-3)
    assert words(3.6e6) == "that takes 1 hours or more"
    assert words(3e9) == "that takes 833 hours or more"
    assert words(1e12).endswith("31.7 years or more")
    assert amounts.memory(lambda n: n * n)(1e5) == "that takes 10 GB or more"

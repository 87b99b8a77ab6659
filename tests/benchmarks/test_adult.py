"""Records of a census as images, and networks trained to an accuracy."""

import numpy as np

from benchmarks import adult

ROWS = """20, Private, 100, A, 5, Single, X, Y, W, Male, 0, 0, 40, Here, <=50K
40, State-gov, 300, B, 9, Single, X, Y, W, Male, 0, 10, 60, Here, >50K
30, ?, 200, A, 5, Single, X, Y, W, Male, 0, 0, 40, There, >50K
30, Private, 200, A, 7, Single, X, Y, W, Male, 5, 0, 50, There, >50K

"""


def load(folder, **options):
    (folder / "adult.data").write_text(ROWS, "utf-8")
    return adult.load(folder, **options)


def test_columns_go_from_0_to_1_and_rows_without_a_value_are_left_out(tmp_path):
    images, labels = load(tmp_path)
    table = images.reshape(3, -1)
    assert images.shape == (3, 1, 6 + 2 + 2 + 1 + 1 + 1 + 1 + 1 + 2, 1)
    assert labels.tolist() == [0, 1, 1]
    np.testing.assert_allclose(table[:, 0], [0, 1, 0.5])
    assert table.min() == 0 and table.max() == 1
    np.testing.assert_array_equal(table[:, 6:].sum(1), [8, 8, 8])  # one-hot


def test_standardised_columns_have_mean_0_and_deviation_1(tmp_path):
    table = load(tmp_path, standardised=True).images.reshape(3, -1)
    np.testing.assert_allclose(table.mean(0), 0, atol=1e-6)
    assert set(np.round(table.std(0), 4)) == {0, 1}  # constant columns stay 0

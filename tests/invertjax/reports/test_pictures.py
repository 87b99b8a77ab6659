"""Pictures of images beside one another."""

import io

import numpy as np
import pytest
from PIL import Image

from invertjax.reports import pictures


def test_the_grid_holds_every_image_unsmoothed():
    colours = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    images = np.broadcast_to(colours[:, None, None], (3, 2, 2, 3))
    grey = np.full((1, 2, 2, 1), np.nan)  # what is not finite is black, not an error
    picture = pictures.grid(
        [("original", images, ["1 dB"]), ("guess", grey, [])], side=8
    )
    assert isinstance(picture, Image.Image) and picture.mode == "RGB"
    pixels = np.asarray(picture).reshape(-1, 3)
    for colour in colours:
        assert np.all(pixels == 255 * colour, axis=1).sum() == 64


def test_values_out_of_range_are_clipped_in_the_grid():
    images = np.array([-1.0, 2.0]).reshape(2, 1, 1, 1)
    pixels = np.asarray(pictures.grid([("", images, [])], side=4))[:4, 190:210, 0]
    assert set(pixels.flatten().tolist()) == {0, 255}


def test_images_keep_their_shape_and_are_never_made_smaller():
    wide = np.zeros((1, 50, 200, 3))
    wide[:, :, ::2] = 1.0  # stripes of one pixel, which a smaller picture would lose
    picture = np.asarray(
        pictures.grid([("", wide, []), ("", np.ones((1, 6, 6, 1)), [])])
    )
    np.testing.assert_array_equal(picture[:50, 190:390], 255 * wide[0])
    small = picture[50 + 22 :, 190:]
    assert np.all(small[:96, :96] == 255) and len(small) == 96 + 22


@pytest.mark.parametrize("channels, across, down", [(2, 2, 1), (5, 3, 2), (13, 4, 4)])
def test_channels_that_are_no_colours_are_tiles_in_grey(channels, across, down):
    """From left to right, from the top down, a white line between."""
    levels = np.arange(channels) / 20
    image = np.broadcast_to(levels, (4, 3, channels))
    side = max(5 * down, 4 * across) - 1  # so that nothing is enlarged
    title = "target 0"
    picture = np.asarray(pictures.grid([(title, image[None], ["1 dB"])], side=side))
    drawn = picture[: 5 * down - 1, 190 : 190 + 4 * across - 1]
    for channel, level in enumerate(levels):
        y, x = 5 * (channel // across), 4 * (channel % across)
        tile = drawn[y : y + 4, x : x + 3]
        np.testing.assert_array_equal(tile, np.full((4, 3, 3), round(255 * level)))
    assert np.all(drawn[4::5] == 255) and np.all(drawn[:, 3::4] == 255)
    assert np.all(
        drawn[5 * (down - 1) :, 4 * (channels - across * (down - 1)) :] == 255
    )
    # The title says more than it does of images in colour, where nothing is added.
    plain = np.asarray(pictures.grid([(title, image[None, ..., :1], [])], side=side))
    assert np.sum(picture[:, :190] < 255) > np.sum(plain[:, :190] < 255)


def test_png_is_a_file_of_the_same_pixels():
    picture = pictures.grid([("", np.full((1, 4, 4, 1), 0.5), [])], side=4)
    with Image.open(io.BytesIO(pictures.png(picture))) as read:
        assert read.format == "PNG"
        np.testing.assert_array_equal(np.asarray(read), np.asarray(picture))

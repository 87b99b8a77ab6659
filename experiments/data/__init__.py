"""Images to audit and to train on: four kinds of names, one `Dataset`, no network.

| name           | what it is                                                   |
|----------------|--------------------------------------------------------------|
| `photos`       | crops of photographs that ship inside scikit-image's wheel   |
| `faces`        | faces and backgrounds of Labeled Faces in the Wild, 25x25    |
| `folder:PATH`  | your own files, one folder a class, or a single class        |
| anything else  | a TFDS data set that is prepared on disk as array_record     |

A data set that comes with the installation is a source and a row of `embedded.SOURCES`.
"""

import numpy as np

from experiments.data import embedded, folder, tfds_source
from experiments.data.base import Dataset, Source, resize, select, shared

__all__ = ["Dataset", "check", "load", "shared"]


def load(
    name: str,
    split: str = "test",
    data_dir: str | None = None,
    *,
    image_size: int | None = None,
    limit: int | None = None,
) -> Dataset:
    """Reads the images of one split into memory, in a fixed order.

    Pixels are `uint8 / 255` exactly where nothing was resized, `uint16 / 65535` of
    files that hold 16 bits.

    Args:
      name: `photos`, `faces`, `folder:PATH` or a TFDS name, `name[/config][:version]`.
      split: `train` or `test` (TFDS: whatever was prepared), with a slice of whole
        numbers if wanted: `test[8:16]` are the ninth to the sixteenth image.
      data_dir: folder of prepared TFDS sets; by default the environment's
        TFDS_DATA_DIR, else `~/tensorflow_datasets`. Only TFDS names use it.
      image_size: side in pixels, >= 1, to which every image is resized (Lanczos; the
        aspect ratio of files is not kept). By default the data set's own: 32 for
        `photos`, 25 for `faces`, the files' where they agree.
      limit: at most so many images are read, >= 1; by default all.

    Returns:
      A `Dataset`. It may hold fewer than `limit` images, never none.

    Raises:
      ValueError: a one-line message that says what would be right; see `check`.
    """
    source, indices = _open(name, split, data_dir, image_size, limit)
    side = image_size or source.image_size
    images, labels = [], []
    for image, label in source.read(indices):
        images.append(image if side is None else resize(image, side))
        labels.append(label)
        if images[-1].shape != images[0].shape:
            raise ValueError(
                f"Images of {name!r} differ: shape {images[-1].shape} after "
                f"{images[0].shape}. Set image_size, such as image_size=64."
            )
    return Dataset(
        images=_in_unit_range(images),
        labels=np.asarray(labels, np.int32),
        class_names=source.class_names,
        name=name,
        split=split,
    )


def check(
    name: str,
    split: str = "test",
    data_dir: str | None = None,
    *,
    image_size: int | None = None,
    limit: int | None = None,
) -> int:
    """Counts the images that `load` would read, without decoding any.

    Cheap: reads folders, image headers and TFDS' description files; TFDS itself is
    imported only to explain a failure. Nothing is written, downloaded or retried.

    Args:
      name, split, data_dir, image_size, limit: see `load`.

    Returns:
      The number of images, >= 1.

    Raises:
      ValueError: unknown name (with the near misses) or split, empty slice, data that
        is not prepared (with the command that prepares it), mixed image sizes.
    """
    return len(_open(name, split, data_dir, image_size, limit)[1])


def _in_unit_range(images: list[np.ndarray]) -> np.ndarray:
    """Returns float32 `[N, H, W, C]` in [0, 1] of uint8 ones, or of such already."""
    found = np.empty((len(images), *images[0].shape), np.float32)
    for i, image in enumerate(images):
        eight_bits = image.dtype == np.uint8
        found[i] = image.astype(np.float32) / np.float32(255) if eight_bits else image
    return found


def _open(
    name: str,
    split: str,
    data_dir: str | None,
    image_size: int | None,
    limit: int | None,
) -> tuple[Source, range]:
    for argument, value in (("image_size", image_size), ("limit", limit)):
        if value is not None and value < 1:
            raise ValueError(f"Expected {argument}={value} >= 1.")
    wanted = select(split)
    if name in embedded.SOURCES:
        source = embedded.SOURCES[name](wanted.split)
    elif name.startswith("folder:"):
        path = name.removeprefix("folder:")
        source = folder.open_source(path, wanted.split, image_size)
    else:
        source = tfds_source.open_source(name, wanted.split, data_dir, image_size)
    indices = range(source.size)[wanted.slice][:limit]
    if not indices:
        raise ValueError(
            f"No images in split={split!r} of {name!r}: {wanted.split!r} holds "
            f"{source.size}."
        )
    return source, indices

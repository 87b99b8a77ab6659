"""The images that are reconstructed, and those that are public."""

import dataclasses

from invertjax.cli import amounts
from invertjax.cli.setting import setting

_DATA = ("update", "data, and --update comes without")


@dataclasses.dataclass(frozen=True)
class Data:
    """Which images: `targets` batches of `split`; `train_split` is public."""

    dataset: str = setting(
        "Where the images come from: photos and faces come with the installation, "
        "folder:PATH are your own (PATH/CLASS/IMAGE, or PATH/IMAGE without labels: all "
        "of one class; PNG, JPEG, WebP, TIFF, BMP, and DICOM by invertjax[dicom]), any "
        "other name is a TFDS data set prepared as array_record, such as cifar10.",
        default="photos",
        without=_DATA,
    )
    data_dir: str | None = setting(
        "Folder of TFDS data sets. Default: $TFDS_DATA_DIR.", without=_DATA
    )
    split: str = setting(
        "Split of the targets, e.g. train or test[100:].", default="test", without=_DATA
    )
    train_split: str = setting(
        "Split for training, and of the attacker's public images. Images in it that "
        "are targets too, pixel for pixel, are left out.",
        default="train",
        without=_DATA,
    )
    image_size: int | None = setting(
        "Resize images to this side. Default: as they are; photos 32.",
        at_least=8,
        at_most=8192,
        because=amounts.memory(lambda side: 12.0 * side * side),
        without=_DATA,
    )
    targets: int = setting(
        "Number of updates to attack.",
        default=4,
        at_least=1,
        at_most=10**6,
        because=amounts.seconds(1e-2),
        without=_DATA,
    )

"""An update that the reader's own code has saved, in place of a simulated client."""

import dataclasses

from invertjax.cli import amounts
from invertjax.cli.setting import setting

_FIXED = "a given update has no axes"


def _shape(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(side) for side in text.split(","))
    except ValueError:
        raise ValueError(
            f"--image_shape={text}: expected H,W,C, e.g. 32,32,3."
        ) from None


@dataclasses.dataclass(frozen=True)
class SavedUpdate:
    """The files of an update, and what is needed to make sense of them."""

    update: str | None = setting(
        "Attack this update instead: .npz or .safetensors, keys are paths such as "
        "layers/0/kernel. A gradient, or params before minus after. Needs --params, "
        "--batch_size, --image_shape, and --model or --loss.",
        fixed=_FIXED,
    )
    params: str | None = setting(
        "With --update: file of the params at which it was computed.",
        needs="update",
        fixed=_FIXED,
    )
    image_shape: tuple[int, ...] = setting(
        "With --update: H,W,C.", read=_shape, listed=True, needs="update", fixed=_FIXED
    )
    num_classes: int | None = setting(
        "With --update: K. Default: 10; --loss without --model needs it.",
        at_least=1,
        at_most=10**7,
        because=amounts.memory(lambda classes: 100.0 * classes),
        needs="update",
        fixed=_FIXED,
    )

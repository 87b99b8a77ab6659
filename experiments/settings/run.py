"""What holds for a whole run."""

import dataclasses

from invertjax.cli.setting import setting

OFFSETS = 2  # that are added to a seed, at most, for keys of their own
MOST_SEED = 2**32 - 1 - OFFSETS


def why_seed(seed: float) -> str:
    """Says why a larger seed is refused."""
    del seed
    return "seeds that are equal modulo 2^32 draw the same numbers"


@dataclasses.dataclass(frozen=True)
class Run:
    """Precision and randomness."""

    x64: bool = setting("Compute in float64.", default=False)
    seed: int = setting(
        "Of networks, clients and attacks.",
        default=0,
        at_least=0,
        at_most=MOST_SEED,
        because=why_seed,
        number=True,
    )

    @property
    def dtype(self) -> str:
        return "float64" if self.x64 else "float32"

"""What holds for a whole run."""

import dataclasses

from invertjax.cli.setting import setting


@dataclasses.dataclass(frozen=True)
class Run:
    """Precision and randomness."""

    x64: bool = setting("Compute in float64.", default=False)
    seed: int = setting(
        "Of networks, clients and attacks.", default=0, at_least=0, number=True
    )

    @property
    def dtype(self) -> str:
        return "float64" if self.x64 else "float32"

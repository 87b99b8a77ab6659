"""What an audit needs to know of an attack: one record, a row each in `attackers`."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from invertjax import candidates
from invertjax.auditing.situations import LABELS, Situation, Target, Threat
from invertjax.base import Attack, Params
from invertjax.candidates import Initialisation
from invertjax.defenses.protection import Protection
from invertjax.driver.cache import Cache


class Attacker(NamedTuple):
    """An attack as an audit uses it.

    name: by which a user chooses it.
    make: `(Trial, steps=..., **numbers) -> Attack`; no steps for a closed form.
    numbers: what it can be told, with defaults; None: the attack's own. In a compiled
      program they are arrays, but for None and for what `switches` names where it is 0.
    steps: its budget where nobody says; None for a closed form.
    labels: how it can come by the labels; the first is taken where nobody says.
    images: the most behind one update; None: any number.
    one_gradient: whether it needs a single gradient, and not the sum of local steps.
    blocks: whether it needs the network block by block, given or cut from its loss.
    noise: whether it needs a known defense that adds noise of a known law.
    public: whether it needs public images.
    rule: of derivatives that its clients need, see `clients.gradient`; None: any.
    smooths: whether it wants relus softened on the way.
    start: how its candidates begin.
    switches: numbers whose 0 is part of the program.
    refuses: `(target, params, threat) -> a reason, or None`: what else must hold;
      params, or their shapes, as of one network.
    adapts: `protections -> words` for the threat model, where it uses what it knows of
      them in a way of its own, else None.
    choose: `(situation, cache) -> name` of the row that is run; None: this one.
    prefers: `(situation, cache) -> bool`, whether an auditor who does not choose should
      run this one first; None: never.
    scale_free: whether it finds the images of any multiple of an update.
    warms: whether another attack may start from where it ends.
    exact: whether Newton's steps converge from there.
    identifiable: whether an audit certifies what it finds, where the update determines
      it and a second start arrives there as well; for attacks that solve for images to
      within rounding, and have no rule of their own.
    network: the network that it is shown on where nobody says, a name in `models`.
    work: iterations of gradient matching that one of its steps costs, about; of a
      closed form all of it.
    says: what a user should know, in a sentence or none.
    """

    name: str
    make: Callable[..., Attack]
    numbers: dict[str, float | None] = {}
    steps: int | None = 2_000
    labels: tuple[str, ...] = LABELS
    images: int | None = None
    one_gradient: bool = False
    blocks: bool = False
    noise: bool = False
    public: bool = False
    rule: str | None = None
    smooths: bool = False
    start: Initialisation = candidates.normal
    switches: tuple[str, ...] = ()
    refuses: Callable[[Target, Params, Threat], str | None] | None = None
    adapts: Callable[[Sequence[Protection]], str | None] | None = None
    choose: Callable[[Situation, Cache], str] | None = None
    prefers: Callable[[Situation, Cache], bool] | None = None
    scale_free: bool = False
    warms: bool = False
    exact: bool = False
    identifiable: bool = False
    network: str = "cnn"
    work: int = 1
    says: str = ""

    @property
    def closed_form(self) -> bool:
        """Whether it is finished once it has started."""
        return self.steps is None

    def split(self, numbers: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the numbers that are part of a program, and those that are arrays."""
        fixed = {
            name: value
            for name, value in numbers.items()
            if value is None or (name in self.switches and value == 0)
        }
        return fixed, {k: v for k, v in numbers.items() if k not in fixed}

"""Privacy accounting: the (epsilon, delta) that clipping and noise guarantee.

A thin layer over the `dp-accounting` library, installed with `invertjax[dp]`. All
multipliers z are standard deviation over clipping norm C, as `defenses.dp_sgd` and
Abadi et al. (2016) have it. What dp-accounting's formulas take is the standard
deviation over the sensitivity, the largest change that neighbouring data can make:

| neighbours differ by | a clipped sum moves by up to | formulas are given |
|---|---|---|
| one example replaced by another | 2 C, from one end of the ball to the other | z / 2 |
| one example added or removed | C | z |

dp-accounting 0.6 does not halve by itself, whatever the neighbouring relation: in
`rdp_privacy_accountant.py` the multiplier enters "Theorem 27" of Wang, Balle and
Kasiviswanathan (2019) as that of a Gaussian whose means are 1 apart. The theorem
compares a batch with the example, with its replacement, and with a third in its place:
all three sums lie in a ball of radius C around the rest, so 2 C bounds every pair.

All figures are upper bounds for honest noise. Floating-point noise and choices made by
looking at the data (C, the learning rate) are not covered. Counts (`steps`, rows) are
integers of any type, NumPy's too.
"""

import math
from typing import Any

from invertjax.defenses import ranges


def epsilon(
    noise_multiplier: float,
    *,
    steps: int,
    delta: float,
    batch_size: int,
    examples: int,
) -> float:
    """Returns the epsilon of DP-SGD on batches of fixed size, one example replaced.

    Every step draws its `batch_size` rows anew, uniformly and without replacement,
    from `examples`. Rows of one draw that are then walked through in turn (local
    epochs) are no such draws: for those, call `epsilon_gaussian` with the number of
    times that a row is visited.

    The smaller of two bounds: the RDP accountant, and `epsilon_gaussian`, since
    sampling cannot hurt (what the accountant overlooks where noise is little).

    Args:
      noise_multiplier: z >= 0, standard deviation of the noise on the sum over C.
      steps: noisy updates shared, >= 0.
      delta: in (0, 1); below 1 / examples to mean anything.
      batch_size: rows a step, 1 to `examples`.
      examples: rows there are to draw from.

    Returns:
      `inf` without noise, 0 without steps.

    Raises:
      ImportError: without dp-accounting.
      ValueError: on a number out of range.
    """
    batch_size, examples = _sampling(batch_size, examples)
    unsampled = epsilon_gaussian(noise_multiplier, steps=steps, delta=delta)
    if unsampled in (0.0, math.inf) or batch_size == examples:
        return unsampled
    event = _fixed_size(noise_multiplier, _steps(steps), batch_size, examples)
    return min(unsampled, float(_replace_one().compose(event).get_epsilon(delta)))


def epsilon_poisson(
    noise_multiplier: float, *, steps: int, delta: float, sampling_probability: float
) -> float:
    """Returns the epsilon of DP-SGD on Poisson batches, one example added or removed.

    The figure that papers on DP-SGD report (Abadi et al. 2016, by RDP). It holds where
    every example joins every batch by a coin of its own, and the noisy sum is divided
    by the expected size: quoted for batches of fixed size, it is a convention and no
    guarantee. Arguments and errors as `epsilon`, with

    Args:
      sampling_probability: in [0, 1], that an example joins a batch.
    """
    ranges.check("sampling_probability", sampling_probability, at_least=0, at_most=1)
    # The sensitivity is C here, half of that of a replacement.
    unsampled = epsilon_gaussian(2 * noise_multiplier, steps=steps, delta=delta)
    if unsampled in (0.0, math.inf):
        return unsampled
    library = _library()
    gaussian = library.GaussianDpEvent(float(noise_multiplier))
    step = library.PoissonSampledDpEvent(float(sampling_probability), gaussian)
    accountant = library.rdp.RdpAccountant().compose(step, _steps(steps))
    return min(unsampled, float(accountant.get_epsilon(delta)))


def epsilon_gaussian(noise_multiplier: float, *, steps: int, delta: float) -> float:
    """Returns the epsilon of clipping and Gaussian noise, the clipped part replaced.

    Every step uses the data that is protected: a client whose whole update is clipped
    to C, with noise z C, in `steps` rounds (local, client-level privacy: all of its
    data may be replaced), or a row of DP-SGD that is in `steps` batches. The
    sensitivity is 2 C. When a client may rather be absent, which leaves a zero and
    makes it C, double `noise_multiplier`.

    Exact, for `steps` Gaussians are one with multiplier z / sqrt(steps): Balle and Wang
    (2018), "Improving the Gaussian Mechanism for Differential Privacy", Theorem 8.
    Arguments and errors as `epsilon`.
    """
    steps = _steps(steps)
    _check_delta(delta)
    ranges.check("noise_multiplier", noise_multiplier, at_least=0)
    library = _library()
    if steps == 0:
        return 0.0
    sigma = float(noise_multiplier) / 2 / math.sqrt(steps)
    return float(library.get_epsilon_gaussian(sigma, delta))


def noise_multiplier(
    epsilon: float, *, steps: int, delta: float, batch_size: int, examples: int
) -> float:
    """Returns the least z, to .01%, whose `epsilon(z, ...)` is at most the given one.

    Args:
      epsilon: > 0. The other arguments and the errors are those of `epsilon`, but
        `steps` >= 1.
    """
    batch_size, examples = _sampling(batch_size, examples)
    steps = _steps(steps, at_least=1)
    _check_delta(delta)
    ranges.check("epsilon", epsilon, above=0)
    library = _library()
    unsampled = 2 * math.sqrt(steps) * library.get_sigma_gaussian(epsilon, delta)
    if batch_size == examples:
        return unsampled

    def event(log_z: float) -> Any:
        return _fixed_size(math.exp(log_z), steps, batch_size, examples)

    most = math.log(unsampled)
    if _replace_one().compose(event(most)).get_epsilon(delta) >= epsilon:
        return unsampled
    bracket = library.ExplicitBracketInterval(math.log(1e-3), most)
    return math.exp(
        library.calibrate_dp_mechanism(
            _replace_one, event, epsilon, delta, bracket, tol=1e-4
        )
    )


def _fixed_size(
    noise_multiplier: float, steps: int, batch_size: int, examples: int
) -> Any:
    library = _library()
    gaussian = library.GaussianDpEvent(
        float(noise_multiplier) / 2
    )  # see the table above
    step = library.SampledWithoutReplacementDpEvent(examples, batch_size, gaussian)
    return library.SelfComposedDpEvent(step, steps)


def _replace_one() -> Any:
    library = _library()
    relation = library.NeighboringRelation.REPLACE_ONE
    return library.rdp.RdpAccountant(neighboring_relation=relation)


def _sampling(batch_size: int, examples: int) -> tuple[int, int]:
    examples = ranges.whole("examples", examples, at_least=1)
    size = ranges.whole("batch_size", batch_size, at_least=1, at_most=examples)
    return size, examples


def _steps(steps: int, at_least: int = 0) -> int:
    return ranges.whole("steps", steps, at_least=at_least)


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"Expected delta={delta} in (0, 1).")


def _library() -> Any:
    try:
        import dp_accounting
    except ModuleNotFoundError as error:
        raise ImportError(
            "Expected dp-accounting to be installed: pip install 'invertjax[dp]'."
        ) from error
    return dp_accounting

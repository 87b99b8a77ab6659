"""How far a batch that explains an update can be from the batch behind that update.

Let r(x) = share(x) - observed, and J its Jacobian at the images x that were found. If
observed = share(truth) + e, where e is rounding, and x is so near to the truth that r
is linear between them, then J (x - truth) = r + e, so that of image i

    |x_i - truth_i| <= |P_i J^+| (|r| + |e|),

where P_i takes the rows of image i, and |P_i J^+| <= 1 / sigma_min is the largest
singular value of a block of the pseudo-inverse.

That x is near the truth is an assumption, which nothing computed at x can prove. What
can be refuted is: the surplus equations must agree to within rounding after one
Gauss-Newton step, as they do for no local minimum that is not a solution, and for no
update with noise of which the client knows nothing; and a move by the tolerated error
in the direction that J sees least must change the update as J says.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

UNKNOWNS = (
    1_024  # the eigenvectors of 3,072 take longer than the attack that found them
)
ENTRIES = 2**28  # of the Jacobian, 1 GiB in float32
MARGIN = 1.25  # equations for each unknown: the surplus is what shows a misfit
SIDE_BY_SIDE = 128  # columns of the Jacobian
ROWS = 2**14  # of the Jacobian that are in float64 at once

NEAR = 1e-3  # of the update's norm: the most that may be unexplained
ROUNDING = 64.0  # eps by which updates of equal batches may differ, of their norm
DERIVATIVES = 16.0  # eps by which a Jacobian may be off, of its Frobenius norm
RESOLVED = 4.0  # times that error: the least singular value that counts
TOLERATED = 0.01  # root mean square error of an image in [0, 1]: 40 dB


class Spectrum(NamedTuple):
    """What the Jacobian at a batch of B images says, in float64.

    singular: `[n]`, its singular values, largest first.
    rounding: by how much each may be off.
    amplified: `[B]`, the norm of each image's block of the pseudo-inverse; infinite
      where the smallest singular value is not resolved.
    step: `[B, ...]`, the pseudo-inverse of the residual, to be taken off the images.
    weakest: `[B, ...]`, of norm 1, the change that the update shows least.
    """

    singular: np.ndarray
    rounding: float
    amplified: np.ndarray
    step: np.ndarray
    weakest: np.ndarray

    @property
    def resolved(self) -> bool:
        """Whether the smallest singular value stands out from rounding."""
        return bool(self.singular[-1] > RESOLVED * self.rounding)


class Identified(NamedTuple):
    """How exactly a batch is known.

    errors: `[B]`, bounds on root mean square errors of images in [0, 1]; infinite where
      nothing is known.
    reason: why nothing is known, "" where something is.
    """

    errors: np.ndarray
    reason: str


def refuses(unknowns: int, equations: int) -> str | None:
    """Returns why a problem is too large or has too few equations, None if not."""
    if unknowns > UNKNOWNS:
        return f"{unknowns} unknowns are more than the {UNKNOWNS} that are analysed"
    if equations < MARGIN * unknowns:
        return (
            f"{equations} equations for {unknowns} unknowns leave too few to check "
            f"what is found: expected {MARGIN} for each"
        )
    if unknowns * equations > ENTRIES:
        return (
            f"a Jacobian of {unknowns} x {equations} has more entries than the "
            f"{ENTRIES} that are analysed"
        )
    return None


def jacobian(
    residual: Callable[[jax.Array], jax.Array], images: jax.Array
) -> jax.Array:
    """Returns the transposed Jacobian `[n, m]` of a residual at images of n pixels.

    Products are in full precision; it may be compiled.

    Args:
      residual: `images -> [m]`, with forward-mode derivatives.
      images: `[B, H, W, C]`.
    """
    with jax.default_matmul_precision("highest"):  # while it is traced
        _, push = jax.linearize(residual, images)

        def column(index: jax.Array) -> jax.Array:
            flat = jnp.arange(images.size) == index
            return push(flat.astype(images.dtype).reshape(images.shape))

        every = jnp.arange(images.size)
        return jax.lax.map(column, every, batch_size=min(SIDE_BY_SIDE, images.size))


def spectrum(
    columns: np.ndarray, residual: np.ndarray, shape: tuple[int, ...]
) -> Spectrum:
    """Returns the singular values of a Jacobian, and what follows from them.

    J^T J is summed in float64, so that the rounding of J itself, in its own type, is
    what limits the smallest of them.

    Args:
      columns: `[n, m]`, from `jacobian`.
      residual: `[m]`.
      shape: `(B, ...)` of the images.
    """
    gram, pulled = np.zeros((len(columns),) * 2), np.zeros(len(columns))
    for first in range(0, columns.shape[1], ROWS):
        some = columns[:, first : first + ROWS].astype(np.float64)
        gram += some @ some.T
        pulled += some @ residual[first : first + ROWS].astype(np.float64)
    squares, vectors = np.linalg.eigh(gram)  # smallest first
    squares = np.maximum(squares, 0.0)
    singular = np.sqrt(squares)
    eps = float(jnp.finfo(columns.dtype).eps)
    rounding = DERIVATIVES * eps * float(np.sqrt(np.trace(gram)))
    weakest = vectors[:, 0].reshape(shape)
    found = Spectrum(
        singular[::-1], rounding, np.full(shape[0], np.inf), np.zeros(shape), weakest
    )
    if not found.resolved:
        return found
    inverse = vectors / singular[None]  # times orthonormal rows, the pseudo-inverse
    step = (inverse @ (inverse.T @ pulled)).reshape(shape)
    norms = [1 / singular[0]]
    if shape[0] > 1:
        norms = [_largest(rows) for rows in np.split(inverse, shape[0])]
    # The true Jacobian's smallest singular value may be less by its rounding.
    least = singular[0] / (singular[0] - rounding)
    return found._replace(amplified=least * np.asarray(norms), step=step)


def _largest(rows: np.ndarray) -> float:
    """Returns the largest singular value of a matrix with fewer rows than columns."""
    return float(np.sqrt(np.linalg.eigvalsh(rows @ rows.T)[-1]))


def identified(
    residual_at: Callable[[np.ndarray], np.ndarray],
    jacobian_at: Callable[[np.ndarray], np.ndarray],
    images: np.ndarray,
    size: float,
    eps: float,
) -> Identified:
    """Bounds the error of each image of a batch that explains an update.

    What it assumes, and checks, is said at the top of this module. The cheap checks
    come first.

    Args:
      residual_at: `images -> [m]`, the update of the images minus the one observed.
      jacobian_at: `images -> [n, m]`, see `jacobian`.
      images: `[B, H, W, C]`, that were found.
      size: the norm of the observed update.
      eps: of the coarsest type among params, images and update.
    """

    def nothing(reason: str) -> Identified:
        return Identified(np.full(len(images), np.inf), reason)

    residual = residual_at(images)
    unexplained, rounding = _norm(residual), ROUNDING * eps * size
    if not unexplained <= NEAR * size:  # NaN is not
        return nothing("the update is not explained")
    unknowns, equations = images.size, residual.size
    if too_many := refuses(unknowns, equations):
        return nothing(too_many)
    found = spectrum(jacobian_at(images), residual, images.shape)
    if not found.resolved:
        return nothing("some change of the batch leaves the update as it is")
    moved = (images - found.step).astype(images.dtype)
    if not _norm(residual_at(moved)) <= rounding:
        return nothing("the update is not explained to within rounding")
    if not _is_seen(residual_at, images, residual, found):
        return nothing("the update is not linear around the batch")
    # Rounding is as large in what images can explain as in what they cannot.
    noise = rounding * np.sqrt(equations / (equations - unknowns))
    pixels = unknowns / len(images)
    return Identified(found.amplified * (unexplained + noise) / np.sqrt(pixels), "")


def _is_seen(
    residual_at: Callable[[np.ndarray], np.ndarray],
    images: np.ndarray,
    residual: np.ndarray,
    found: Spectrum,
) -> bool:
    """Returns whether the update shows an error that is just tolerated, in the
    direction where it shows least, half as much as the Jacobian says or more."""
    length = TOLERATED * np.sqrt(images.size / len(images))
    least = 0.5 * found.singular[-1] * length
    moves = length * found.weakest, -length * found.weakest
    return all(
        _norm(residual_at((images + move).astype(images.dtype)) - residual) >= least
        for move in moves
    )


def _norm(vector: np.ndarray) -> float:
    return float(np.linalg.norm(vector.astype(np.float64)))

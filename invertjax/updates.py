"""Whether an observed update, a client and a candidate fit one another."""

from typing import Any

import jax
import jax.numpy as jnp

from invertjax import leaves
from invertjax.base import Batch, Candidate, Share, Update


def checked(share: Share, observed: Update, candidate: Candidate) -> Update:
    """Returns the floats of an update that fits what the client shares of a guess.

    Raises:
      ValueError: if `observed` differs in tree or shapes from what `share` returns, if
        the client reads an entry of the batch that the candidate does not have, or if
        it takes no images of the candidate's precision.
    """
    observed = leaves.floats(observed)
    key = jax.eval_shape(lambda: jax.random.key(0))
    batch = jax.eval_shape(lambda key: candidate.decode(candidate.init(key)), key)
    guess = shapes(share, batch)
    wanted, given = _named(guess), _named(observed)
    if jax.tree.structure(guess) != jax.tree.structure(observed):
        missing, unknown = sorted({*wanted} - {*given}), sorted({*given} - {*wanted})
        raise ValueError(
            f"Expected an update with the tree {jax.tree.structure(guess)}, got "
            f"{jax.tree.structure(observed)}: missing {missing}, unknown {unknown}."
        )
    for name, want in wanted.items():
        if want.shape != jnp.shape(given[name]):
            raise ValueError(
                f"Expected update {name} to have shape {want.shape}, as the params "
                f"have; got {jnp.shape(given[name])}."
            )
    return observed


def _reads_unknown(error: KeyError, batch: Batch) -> bool:
    """Returns whether an error says that a loss has read an entry that is not there."""
    name = error.args[0] if error.args else None
    return isinstance(batch, dict) and isinstance(name, str) and name not in batch


def shapes(share: Share, batch: Batch) -> Update:
    """Returns the shapes of what a client would share of a guess of these shapes.

    Raises:
      ValueError: see `checked`.
    """
    try:
        return jax.eval_shape(share, batch)
    except KeyError as error:
        if not _reads_unknown(error, batch):
            raise
        (name,) = error.args
        raise ValueError(
            f"The client reads batch[{name!r}], and a guess has {sorted(batch)}: "
            f"let it optimise that entry, by candidates.with_entry(candidate, {name!r}"
            ", ...), or close the loss over it."
        ) from None
    except TypeError as error:
        wide = [leaf for leaf in jax.tree.leaves(batch) if leaf.dtype == jnp.float64]
        if not wide or "dtype" not in str(error):
            raise
        raise ValueError(
            "Under jax_enable_x64 a guess has float64 images, and the client takes no "
            "such images: expected params and update of float64, e.g. jax.tree.map("
            f"lambda leaf: leaf.astype('float64'), params) ({_first_line(error)})."
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0].rstrip(".")


def _named(tree: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }

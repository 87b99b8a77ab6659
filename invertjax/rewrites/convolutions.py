"""Convolutions as matrix products, for any model, unmodified.

Gradient matching differentiates a network twice, often under `vmap` and inside
`scan`. XLA's CPU backend then leaves its fast convolutions: weight gradients become
grouped convolutions, and a step takes 5 to 10 times longer. The same convolution as
padding, strided slices, concatenation and one matrix product ("unrolled", or im2col:
Chellapilla et al. (2006), "High Performance Convolutional Neural Networks for
Document Processing") stays fast, because every derivative of it is made of these
again. We unroll one dimension after the other: kh + kw slices, not kh * kw.

Rewrite the loss *before* it is differentiated or vmapped:

    loss_fn = convolutions.as_matrix_products(loss_fn)
    client = clients.gradient(loss_fn)
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax
from jax.extend import core

from invertjax.rewrites import equations

# A kernel of size [kh, kw] takes kh + kw slices. Beyond this many, tracing and
# compiling cost more than a slow convolution does.
_MAX_SLICES = 256


def preferred() -> bool:
    """Says whether matrix products are the faster default: on CPUs and GPUs they are.

    This is from measurements of a step of gradient matching through five 3x3
    convolutions on 32x32 images. With XLA's own convolutions it takes, of the time with
    matrix products,

    | | one image | a batch of 8 | 8 (CPU) or 64 (GPU) restarts |
    |---|---|---|---|
    | two CPU cores | 4 times | 9 times | 7 times |
    | an NVIDIA H200 | 2.3 times | 1.2 times | 2.5 times |

    Other backends and larger batches on GPUs were not measured; other backends keep
    their own. It is only a default: measure your own model, and call
    `as_matrix_products` or not.
    """
    return jax.default_backend() in ("cpu", "gpu")


def as_matrix_products(fun: Callable[..., Any]) -> Callable[..., Any]:
    """Computes `fun` with its convolutions written as matrix products.

    Each call traces `fun` and replaces every `lax.conv_general_dilated`, also inside
    `jit`, `checkpoint`, `scan`, `while_loop`, `cond` and `shard_map`; every other
    operation stays as it is. The result is transparent to `jit`, `grad`, `jvp` and
    `vmap`, of any order, and `fun` may close over tracers.

    | convolution | becomes |
    |---|---|
    | any strides, padding, dilations, layout, 1 to n spatial dimensions | a product |
    | grouped by feature or by batch | one batched product |
    | more than 256 slices (the sum of its kernel's sides), or an empty array | kept |
    | in the body of a `custom_jvp` or `custom_vjp` function | a product |
    | in the derivative rule of such a function | kept: rewrite the derivative |

    A product holds its input once for each entry of the kernel: nine times for 3x3.
    Apply it to a loss before differentiation: rewriting a gradient works too, but
    there the kernel of a convolution may be as large as an image.

    Args:
      fun: any function of pytrees that `jax.grad` could trace: arrays computed
        inside it must not decide Python branches. Arguments that are no arrays
        (flags, functions) reach it unchanged.

    Returns:
      A function with the signature of `fun`, and its values up to the order of
      summation. Python numbers in the result become arrays, as under `jax.jit`.
    """

    return _REWRITING.function(fun)


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **params: Any,
) -> jax.Array:
    """Computes `lax.conv_general_dilated` as a matrix product.

        out[n, p, o] = sum_{k, c} padded[n, stride p + dilation k, c] rhs[k, c, o]

    Fastest channel-last (`dimension_numbers=("NHWC", "HWIO", "NHWC")`), where nothing
    is transposed.

    Args:
      lhs: input, e.g. `[N, H, W, C]`.
      rhs: kernel, e.g. `[kh, kw, C / groups, O]`.
      window_strides: one a spatial dimension.
      padding: "SAME", "VALID" or (low, high) a spatial dimension; may be negative.
      **params: the other parameters of `lax.conv_general_dilated`.

    Returns:
      The convolution, e.g. `[N, H', W', O]`.

    Raises:
      ValueError, TypeError: as `lax.conv_general_dilated` does.
    """
    convolve = functools.partial(
        lax.conv_general_dilated,
        window_strides=window_strides,
        padding=padding,
        **params,
    )
    return as_matrix_products(convolve)(lhs, rhs)


def _is_convolution(eqn: core.JaxprEqn) -> bool:
    return eqn.primitive.name == "conv_general_dilated"


def _as_product(eqn: core.JaxprEqn) -> list[core.JaxprEqn]:
    if not _covered(eqn):
        return [eqn]
    params = {k: v for k, v in eqn.params.items() if k != "out_sharding"}
    return equations.of(functools.partial(_product, **params), eqn)


_REWRITING = equations.Rewriting(_is_convolution, _as_product)


def _covered(eqn: core.JaxprEqn) -> bool:
    avals: list[Any] = [var.aval for var in (*eqn.invars, *eqn.outvars)]
    shapes = [aval.shape for aval in avals]
    numbers = eqn.params["dimension_numbers"]
    kernel = [shapes[1][axis] for axis in numbers.rhs_spec[2:]]
    return (
        sum(size for size in kernel if size > 1) <= _MAX_SLICES
        and all(isinstance(n, int) and n > 0 for shape in shapes for n in shape)
        and eqn.params.get("out_sharding") is None
    )


def _product(
    lhs: jax.Array,
    rhs: jax.Array,
    *,
    dimension_numbers: lax.ConvDimensionNumbers,
    padding: Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int],
    **params: Any,
) -> jax.Array:
    """Brings any layout to channel-last and back; `lax.transpose` skips identities."""
    lhs_spec, rhs_spec, out_spec = dimension_numbers
    lhs = lax.transpose(lhs, (lhs_spec[0], *lhs_spec[2:], lhs_spec[1]))
    rhs = lax.transpose(rhs, (*rhs_spec[2:], rhs_spec[1], rhs_spec[0]))
    low_high_interior = [
        (low, high, dilation - 1)
        for (low, high), dilation in zip(padding, lhs_dilation, strict=True)
    ]
    if any(map(any, low_high_interior)):
        zero = lax.full_like(lhs, 0, shape=())  # As weakly typed as `lhs`.
        lhs = lax.pad(lhs, zero, [(0, 0, 0), *low_high_interior, (0, 0, 0)])
    out = _grouped(lhs, rhs, **params)
    axes = (out_spec[0], *out_spec[2:], out_spec[1])
    return lax.transpose(out, [axes.index(axis) for axis in range(out.ndim)])


def _grouped(
    lhs: jax.Array,
    rhs: jax.Array,
    *,
    feature_group_count: int,
    batch_group_count: int,
    **params: Any,
) -> jax.Array:
    """Convolves `lhs`, `[N, *spatial, C]`, by `rhs`, `[*kernel, C / groups, O]`."""
    ungrouped = functools.partial(_ungrouped, **params)
    groups = feature_group_count * batch_group_count  # One of them is 1.
    if groups == 1:
        return ungrouped(lhs, rhs)
    axis = lhs.ndim - 1 if feature_group_count > 1 else 0
    lhs = _split(lhs, axis, groups)
    rhs = _split(rhs, rhs.ndim - 1, groups)
    out = jax.vmap(ungrouped, in_axes=(axis, -2), out_axes=-2)(lhs, rhs)
    return out.reshape(*out.shape[:-2], -1)


def _split(array: jax.Array, axis: int, groups: int) -> jax.Array:
    shape = array.shape
    return array.reshape(*shape[:axis], groups, -1, *shape[axis + 1 :])


def _ungrouped(
    lhs: jax.Array,
    rhs: jax.Array,
    *,
    window_strides: Sequence[int],
    rhs_dilation: Sequence[int],
    **params: Any,
) -> jax.Array:
    # One dimension after the other takes kh + kw slices instead of kh * kw; last
    # dimension first, so that the features come in the order of the kernel's rows.
    for axis in reversed(range(1, lhs.ndim - 1)):
        size, stride = rhs.shape[axis - 1], window_strides[axis - 1]
        lhs = _windows(lhs, axis, size, stride, rhs_dilation[axis - 1])
    return lax.dot_general(
        lhs,
        rhs.reshape(-1, rhs.shape[-1]),
        (((lhs.ndim - 1,), (0,)), ((), ())),
        **params,
    )


def _windows(
    lhs: jax.Array, axis: int, size: int, stride: int, dilation: int
) -> jax.Array:
    """Moves the `size` inputs of each window along `axis` to the last dimension."""
    if size == stride == 1:
        return lhs
    span = lhs.shape[axis] - (size - 1) * dilation  # Where a window may start.
    slices = [
        lax.slice_in_dim(lhs, start, start + span, stride, axis)
        for start in range(0, size * dilation, dilation)
    ]
    return lax.concatenate(slices, lhs.ndim - 1)

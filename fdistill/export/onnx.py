"""A generator as an ONNX model; the one door to jax2onnx."""

import logging
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, jaxprs_in_params

from fdistill.errors import UserError
from fdistill.export.model import Exportable

FILE = 'model.onnx'
OPSET = 21  # that runtimes have known for two years
NOTES = (
    f'The model is ONNX opset {OPSET}. Its inputs are `noise`, float32 [B, ...] of unit variance, '
    'and, where there are classes, `label`, int32 [B], -1 for none; its output is `images`, '
    'float32 [B, ...]. It computes in float32, whatever the network was trained in'
)
MOST_BYTES = 2**31  # of a model in one file
INSTALL = "pip install 'fdistill[onnx]'"


def ready() -> None:
    """Raises UserError where jax2onnx is missing."""
    try:
        import jax2onnx  # noqa: F401
    except ImportError as error:
        raise UserError(
            f'--to=onnx and --to=page need jax2onnx, which is not installed: {INSTALL}'
        ) from error


def write(model: Exportable, folder: pathlib.Path) -> None:
    """Writes model.onnx: noise [B, ...] and label [B], where there are classes, to images [B, ...].

    Args:
      model: a trained generator.
      folder: that exists.

    Raises:
      UserError: it has an operation without a translation, or is too large for one file.
    """
    data = as_bytes(model)
    (folder / FILE).write_bytes(data)


def as_bytes(model: Exportable) -> bytes:
    """The file that `write` writes."""
    size = sum(array.nbytes for array in model.arrays.values())
    if size >= MOST_BYTES:
        raise UserError(
            f'--to: the weights take {size / 2**30:.1f} GiB, and an ONNX file holds 2; use '
            '--to=jax or --to=safetensors'
        )
    (batch,) = jax.export.symbolic_shape('B')
    given = {'noise': jax.ShapeDtypeStruct((batch, *model.run.shape), jnp.float32)}
    if model.run.num_classes:
        given['label'] = jax.ShapeDtypeStruct((batch,), jnp.int32)
    weights = {name: jnp.asarray(array) for name, array in model.arrays.items()}

    def sample(noise, label=None):
        return model.sample(weights, noise, label)

    # Traced here, for jax2onnx traces with functions of jnp in place of jax's, which know fewer
    # arguments and shapes.
    program = jax.make_jaxpr(sample)(*given.values())
    if any(equation.primitive.name == 'random_bits' for equation in _all(program.jaxpr)):
        raise UserError(
            '--to: this generator draws noise between its steps, and the operation random_bits '
            'has no place in ONNX; use --to=jax'
        )
    import jax2onnx

    quiet = logging.root.manager.disable
    logging.disable(logging.WARNING)  # Of layers of other libraries, which are not installed.
    try:
        made = jax2onnx.to_onnx(
            lambda *arrays: replayed(program, arrays)[0],
            list(given.values()),
            input_names=list(given),
            output_names=['images'],
            opset=OPSET,
        )
    except Exception as error:  # Its own are of all kinds.
        said = f'{type(error).__name__}: {str(error).strip()}'.split('\n')[0]
        raise UserError(f'--to: jax2onnx cannot translate it ({said}); use --to=jax') from error
    finally:
        logging.disable(quiet)
    return made.SerializeToString()


def _all(jaxpr):
    """The equations of a program and of those inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from _all(inner)


def _pad(x, value, *, padding_config):
    """`lax.pad` as a concatenation: jax2onnx's knows no batch of any size."""
    for axis, (low, high, between) in enumerate(padding_config):
        if low < 0 or high < 0 or between:
            raise NotImplementedError('pad with negative widths or between elements')
        edges = [
            lax.broadcast_in_dim(value, [*x.shape[:axis], width, *x.shape[axis + 1 :]], ())
            for width in (low, high)
        ]
        parts = [part for part, there in ((edges[0], low), (x, 1), (edges[1], high)) if there]
        x = lax.concatenate(parts, axis) if len(parts) > 1 else x
    return x


def _stack(*parts, axis):
    """A stack as a concatenation: jax2onnx has none."""
    return lax.concatenate([lax.expand_dims(part, (axis,)) for part in parts], axis)


# Of operations that jax2onnx has not, or not for a batch of any size, what is the same.
SAME = {'pad': _pad, 'stack': _stack}
# Operations that only hold a program, and the name of it among their parameters.
HOLDS = {'jit': 'jaxpr', 'remat2': 'jaxpr', 'custom_jvp_call': 'call_jaxpr'}


def _narrow(value):
    return isinstance(value, np.dtype) and value == jnp.bfloat16


def _param(value):
    """A parameter of an operation, such as a type, or the body of a loop, as `replayed` has it."""
    if type(value) is tuple:  # And no NamedTuple: bodies of branches.
        return tuple(map(_param, value))
    if isinstance(value, ClosedJaxpr):
        given = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in value.in_avals]
        return jax.make_jaxpr(lambda *arrays: replayed(value, arrays))(*given)
    return np.dtype('float32') if _narrow(value) else value


def replayed(program: ClosedJaxpr, arrays: Sequence[jax.Array]) -> list[jax.Array]:
    """The outputs of a program of these arrays, with SAME in place of some of its operations, and
    float32 in place of bfloat16, which runtimes on CPUs and in browsers do not compute in."""
    jaxpr = program.jaxpr
    values = dict(zip(jaxpr.constvars, program.consts)) | dict(zip(jaxpr.invars, arrays))

    def read(atom):
        value = atom.val if hasattr(atom, 'val') else values[atom]
        return value.astype(jnp.float32) if _narrow(getattr(value, 'dtype', None)) else value

    for equation in jaxpr.eqns:
        given, name = [read(atom) for atom in equation.invars], equation.primitive.name
        if name in HOLDS:
            inner = equation.params[HOLDS[name]]
            inner = inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ())
            out = replayed(inner, given)
        elif name in SAME:
            out = [SAME[name](*given, **equation.params)]
        else:
            params = {key: _param(value) for key, value in equation.params.items()}
            out = equation.primitive.bind(*given, **equation.primitive.get_bind_params(params))
            out = out if equation.primitive.multiple_results else [out]
        values |= dict(zip(equation.outvars, out))
    return [read(atom) for atom in jaxpr.outvars]

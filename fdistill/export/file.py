"""A model as a file of weights, which a teacher of a config may be, and `fdistill sample`."""

import json
import pathlib

from fdistill import build
from fdistill.errors import UserError
from fdistill.export.model import Exportable
from fdistill.weights import denoisers

FILE = 'model.safetensors'
NOTES = (
    'The file says itself which network it is of, and, of a student, how it makes samples; its '
    'arrays are those of the run, bit for bit'
)


def write(model: Exportable, folder: pathlib.Path) -> None:
    """Writes model.safetensors.

    Args:
      model: of any kind.
      folder: that exists.

    Raises:
      UserError: nothing says its licence, which the file has to.
    """
    if model.licence is None:
        raise UserError('--to=safetensors: the file says its licence; give --licence=NAME')
    if model.method and model.steps is None and not build.has_solver({'method': model.method}):
        raise UserError(
            f'--to=safetensors: has no words for how a student by {model.method["name"]} makes '
            'samples; take --to=jax or --to=onnx'
        )
    more = {'data': model.name}
    if model.method:
        more['method'] = json.dumps(model.method, sort_keys=True)
    if names := model.run.config.get('trained_on'):
        more['trained_on'] = json.dumps(list(names))
    if model.steps is not None:
        more['generator'] = json.dumps(model.steps._asdict())
    denoisers.save(
        folder / FILE,
        model.weights,
        model.sections,
        licence=model.licence,
        derived_from=model.derived_from,
        **more,
    )

"""A denoiser as a model folder of diffusers."""

import pathlib

from fdistill.export.model import Exportable
from fdistill.weights import diffusers

NOTES = (
    'The folder is that of a model and its scheduler, which `from_pretrained` of their classes in '
    'diffusers 0.42 loads'
)


def write(model: Exportable, folder: pathlib.Path) -> None:
    """Writes the folder.

    Args:
      model: of any kind.
      folder: that exists, empty.

    Raises:
      UserError: diffusers has no such network or schedule.
    """
    diffusers.export(folder, model.sections, model.weights, '--to=diffusers')

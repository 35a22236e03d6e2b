"""Trained models in forms that need no fdistill."""

import pathlib
import secrets
import shutil
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fdistill.config import parameters
from fdistill.errors import UserError, pick
from fdistill.export import card, file, folder, model, onnx, page, program
from fdistill.files import disk, hub
from fdistill.methods.generator import Jumps


class Target(NamedTuple):
    """A form.

    write(model, folder, **options): writes its files.
    notes: for the model card.
    ready(): raises UserError where something that it needs is missing.
    draws: whether it makes samples, and so holds a solver and what decodes them.
    keeps: of a form that does not, what it holds of a flow map's solver all the same.
    """

    write: Callable[..., None]
    notes: str
    ready: Callable[[], None] = lambda: None
    draws: bool = True
    keeps: tuple[str, ...] = ()


TARGETS = {
    'jax': Target(program.write, program.WINDOW),
    'onnx': Target(onnx.write, onnx.NOTES, onnx.ready),
    'safetensors': Target(file.write, file.NOTES, draws=False, keeps=('steps', 'guidance')),
    'diffusers': Target(folder.write, folder.NOTES, draws=False),
    'page': Target(page.write, page.NOTES, onnx.ready),
}


def export(
    workdir: str | pathlib.Path | None,
    to: str,
    out: str | pathlib.Path,
    *,
    weights: str | pathlib.Path | None = None,
    licence: str | None = None,
    solver: Mapping[str, Any] | None = None,
    push: str | None = None,
    **options: Any,
) -> pathlib.Path:
    """Writes a model, with its model card README.md, to a new folder.

    Args:
      workdir, weights: run folder, or file of weights; one of them.
      to: a key of TARGETS.
      out: the folder; it is there when it is whole.
      licence: of the weights; default: that of what they were made from.
      solver: sampler, steps and guidance of a denoiser or flow map, see `build.from_workdir`.
      push: OWNER/NAME at a model hub, where the folder is uploaded as well.
      options: of the form, as runtime.

    Returns:
      The folder.

    Raises:
      UserError: on whatever the user can mend, before anything is written.
    """
    target, out = pick(TARGETS, to, '--to'), disk.folder_for(out, '--out')
    for name in options.keys() - parameters(target.write):
        raise UserError(f'--{name}: is not for --to={to}; leave it out')
    if not out.name:
        raise UserError(f'--out={out}: give the name of a new folder')
    asked = () if target.draws else tuple(solver or ())
    _check_kept([name for name in asked if name not in target.keeps], to)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f'--out={out}: is there already; remove it or give another name')
    target.ready()
    if push is not None:
        hub.check(push)
    made = model.opened(workdir, weights, licence=licence, **solver or {})
    if not isinstance(made.steps, Jumps):
        _check_kept(asked, to)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f'.{out.name}.{secrets.token_hex(8)}')
    temporary.mkdir()
    try:
        target.write(made, temporary, **options)
        disk.write_text(temporary / 'README.md', card.text(made, to, target.notes))
        temporary.replace(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if push is not None:
        print(hub.push(out, push))
    return out


def _check_kept(lost, to):
    """UserError where settings of a solver are not kept by a form."""
    if lost:
        raise UserError(
            f'--{lost[0]}: is not kept by --to={to}, which has neither a solver nor an '
            'autoencoder; leave it out'
        )

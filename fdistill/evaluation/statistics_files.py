"""Statistics files: mean and covariance of features, read from strangers' files, and kept with a
note of what they are of.

| file | arrays |
|---|---|
| EDM, pytorch-fid, clean-fid `.npz` | mu, sigma |
| jax-fid, meanflow `.npz` | ref_mu, ref_sigma |
| ADM `.npz` | mu, sigma, mu_s, sigma_s (spatial), and images, which are not read |
| EDM2 `.pkl` | {num_images, fid: {mu, sigma}, fd_dinov2: {mu, sigma}} |
| fdistill `.npz` | mu, sigma, `about`, and, where there are any, mu_s, sigma_s, features |

`about` is JSON: protocol, detector, count and origin.

Nothing in a file is run or unpickled here, and no array is read before its name, type, shape and
size have been checked. Our files keep the names mu and sigma, so that the programs of EDM, ADM and
pytorch-fid read them too.
"""

import io
import json
import pathlib
import warnings
import zipfile

import numpy as np

import fdistill
from fdistill.errors import UserError, pick
from fdistill.evaluation import protocol as protocols
from fdistill.evaluation.statistics import AGAIN, MAX_FEATURES, MAX_KEPT, Statistics, check
from fdistill.files import disk
from fdistill.files.archive import Refused, open_archive
from fdistill.weights.detectors import DETECTORS

FORMAT = 1
MAX_MEMBERS = 64
MAX_ABOUT = 4096
# Covariances hardly compress (to 0.9 of their size); what shrinks a hundredfold is a bomb.
MAX_RATIO, FREE_BYTES = 100, 1 << 20
# Of an .npy header; numpy's own are of 128 bytes.
HEADER_BYTES = 4096

PAIRS = (('mu', 'sigma'), ('ref_mu', 'ref_sigma'))
SPATIAL = ('mu_s', 'sigma_s')


def read(path: disk.Path, detector: str | None = None) -> Statistics:
    """Reads a statistics file of any format of the table above.

    Args:
      path: `.npz` or `.pkl`.
      detector: which statistics to take where a file has those of several (EDM2's).

    Returns:
      Statistics; of a stranger's file without protocol, and with the file's own digest.

    Raises:
      UserError: in one line, why the file is none or is not to be trusted.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(
            f'{_shown(path)}: {"no file but a folder" if path.is_dir() else "no such file"}'
        )
    try:
        reader = pick(READERS, path.suffix, 'suffix of a statistics file')
        return check(reader(path, detector))
    except UserError as error:
        # The reader of pickles begins with the path itself.
        raise UserError(f'{_shown(path)}: {str(error).removeprefix(f"{path}: ")}') from error
    except Exception as error:
        # Of bytes that are not what they claim to be zipfile, zlib, numpy, json and struct raise
        # whatever they like.
        reason = (str(error).splitlines() or [''])[0][:120] or type(error).__name__
        raise UserError(f'{_shown(path)}: no readable statistics ({reason}); {AGAIN}') from error


def vacant(path: disk.Path, where: str = '--out') -> pathlib.Path:
    """As `disk.file_for`, for a file that must not exist yet: a repeated command must not overwrite
    statistics."""
    path = disk.file_for(path, where, ('.npz',))
    if path.exists():
        raise UserError(f'{where}={path}: exists; delete it or choose another name')
    return path


def write(path: disk.Path, statistics: Statistics) -> None:
    """Writes Statistics so that the file is whole or absent, and reads them back the same.

    Args:
      path: ends in `.npz`; its folder is made when missing.
      statistics: Statistics with a protocol.

    Raises:
      UserError: another suffix, a place for no file, or statistics that `read` would refuse.
    """
    path = disk.file_for(path, 'path', ('.npz',))
    if statistics.protocol is None:
        names = ', '.join(protocols.PROTOCOLS)
        raise UserError(
            f'{_shown(path)}: statistics without a protocol are not written; name one of {names}'
        )
    check(statistics)
    about = {
        'format': FORMAT,
        'protocol': statistics.protocol,
        'detector': statistics.detector,
        'count': statistics.count,
        'reference': statistics.reference,
        'source_sha256': statistics.source_sha256,
        'weights_sha256': statistics.weights_sha256,
        'written': {'fdistill': fdistill.__version__, 'numpy': np.__version__},
    }
    arrays = {'mu': statistics.mean, 'sigma': statistics.covariance}
    if statistics.spatial_mean is not None:
        arrays |= dict(zip(SPATIAL, (statistics.spatial_mean, statistics.spatial_covariance)))
    if statistics.features is not None:
        arrays['features'] = statistics.features
    arrays['about'] = np.array(json.dumps(about, ensure_ascii=False))
    disk.write(path, lambda temporary: np.savez(temporary, **arrays))


def convert(
    source: disk.Path,
    out: disk.Path,
    protocol: str,
    count: int | None = None,
    reference: str | None = None,
    detector: str | None = None,
) -> Statistics:
    """Reads a statistics file and writes it as ours under the protocol that its features were made
    by.

    Args:
      source: a file that `read` reads.
      out: the `.npz` file to write.
      protocol: a key of PROTOCOLS. A stranger's file does not tell: the user does.
      count: number of images; None: as the file says, which may be nothing.
      reference: what the images are; None: as the file says, or its name.
      detector: name of own features; None: the protocol's detector.

    Returns:
      The Statistics written.

    Raises:
      UserError: what `read` and `write` refuse, or the file says something else than the user.
    """
    rules = protocols.get(protocol)
    vacant(out, 'OUT')
    source = pathlib.Path(source)
    found = read(source, detector or rules.detector)
    detector = detector or (rules.detector if rules.detector != 'own' else found.detector or 'own')
    if found.protocol is not None and _features(found.protocol) != _features(protocol):
        raise UserError(
            f'{_shown(source)}: made under the protocol {found.protocol!r}, whose features are not '
            'those '
            f'of {protocol!r}; make the statistics anew from the images'
        )
    for what, said, given in (
        ('count', found.count, count),
        ('detector', found.detector, detector),
    ):
        if None not in (said, given) and said != given:
            raise UserError(f'{_shown(source)}: its {what} is {said}, not {given}')
    statistics = found._replace(
        protocol=protocol,
        detector=detector,
        count=found.count if count is None else count,
        reference=reference or found.reference,
        source_sha256=disk.sha256(source),
    )
    write(out, statistics)
    return statistics


def show(path: disk.Path, detector: str | None = None) -> str:
    """A statistics file in lines for people, str; UserError as `read`."""
    found = read(path, detector)
    standard = np.sqrt(np.diag(found.covariance).clip(min=0))
    rows = [
        (
            'protocol',
            _described(found.protocol)
            if found.protocol
            else 'not told; convert it under the right one',
        ),
        ('detector', f'{found.detector or "not told"}, {len(found.mean)} features'),
        ('count', 'not told' if found.count is None else f'{found.count} images'),
        ('reference', found.reference),
        (
            'mean',
            f'{found.mean.mean():.6g} on average, from {found.mean.min():.6g} to '
            f'{found.mean.max():.6g}',
        ),
        (
            'std',
            f'{standard.mean():.6g} on average, from {standard.min():.6g} to {standard.max():.6g}',
        ),
        ('trace', f'{np.trace(found.covariance):.6g}'),
        (
            'kept',
            'no features of single images'
            if found.features is None
            else f'features of {len(found.features)} images',
        ),
        (
            'spatial',
            'none' if found.spatial_mean is None else f'{len(found.spatial_mean)} features',
        ),
        ('weights', f'sha256 {found.weights_sha256}' if found.weights_sha256 else 'not told'),
        ('source', f'sha256 {found.source_sha256}' if found.source_sha256 else 'not told'),
        (
            'written by',
            ', '.join(f'{name} {version}' for name, version in found.written.items())
            or 'another program',
        ),
    ]
    return '\n'.join([str(path), *(f'  {name:<11}{text}' for name, text in rows)])


def _read_npz(path, detector):
    """Statistics of an `.npz` file, unchecked."""
    with path.open('rb') as file:
        try:
            archive, members = open_archive(file, r'\w[\w.-]*\.npy', MAX_MEMBERS)
        except Refused as error:
            raise UserError(f'{error}; {AGAIN}') from error
        members = {name.removesuffix('.npy'): info for name, info in members.items()}
        pairs = [pair for pair in PAIRS if set(pair) & set(members)]
        if len(pairs) != 1 or not set(pairs[0]) <= set(members):
            names = ', '.join(_shown(name) for name in list(members)[:8])
            raise UserError(
                f'has the arrays {names or "(none)"}: expected mu and sigma, or ref_mu and '
                'ref_sigma'
            )
        mean, covariance = (
            _array(archive, members[name], axes) for axes, name in enumerate(pairs[0], 1)
        )
        spatial = (None, None)
        if set(SPATIAL) & set(members):
            if not set(SPATIAL) <= set(members):
                raise UserError('has only one of mu_s and sigma_s')
            spatial = tuple(
                _array(archive, members[name], axes) for axes, name in enumerate(SPATIAL, 1)
            )
        if 'about' not in members:
            return Statistics(
                mean, covariance, None, None, None, path.stem, disk.sha256(path), *spatial
            )
        about = json.loads(_array(archive, members['about'], 0).item())
        kept = _array(archive, members['features'], 2, MAX_KEPT) if 'features' in members else None
    fields = {
        'format',
        'protocol',
        'detector',
        'count',
        'reference',
        'source_sha256',
        'weights_sha256',
        'written',
    }
    if not isinstance(about, dict) or set(about) != fields or about['format'] != FORMAT:
        raise UserError(f'its `about` is not of format {FORMAT}; is it of a newer fdistill?')
    written = about['written']
    if not isinstance(written, dict) or not all(
        str(text).isprintable() for item in written.items() for text in item
    ):
        raise UserError(f'its `about` is damaged; {AGAIN}')
    # Only strangers' files may keep silent on these.
    protocols.get(about['protocol'])
    if not isinstance(about['detector'], str):
        raise UserError(f'its `about` names no detector; {AGAIN}')
    statistics = Statistics(
        mean,
        covariance,
        about['count'],
        about['protocol'],
        about['detector'],
        about['reference'],
        about['source_sha256'],
        *spatial,
        written,
        about['weights_sha256'],
        kept,
    )
    if detector not in (None, 'own', statistics.detector):
        raise UserError(f'has statistics of {statistics.detector!r}, not of {detector!r}')
    return statistics


HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def _array(archive, info, axes, rows=MAX_FEATURES):
    """The array of a member, with 0 (text), 1 (mean) or 2 (covariance) axes and `rows` rows at
    most; nothing else is expanded."""
    name = _shown(info.orig_filename)
    largest = HEADER_BYTES + (4 * MAX_ABOUT if axes == 0 else 8 * rows * MAX_FEATURES ** (axes - 1))
    if info.file_size > largest:
        raise UserError(
            f'{name} expands from {info.compress_size} to {info.file_size} bytes, more than '
            'statistics have'
        )
    if info.file_size > FREE_BYTES + MAX_RATIO * info.compress_size:
        raise UserError(
            f'{name} expands from {info.compress_size} to {info.file_size} bytes, which no '
            'statistics do'
        )
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UserError(f'{name} is encrypted, or compressed in a way that numpy does not')
    with archive.open(info) as member:
        # What has been read, and no more, is shown to numpy: it would allocate whatever length a
        # header claims.
        head = io.BytesIO(member.read(HEADER_BYTES))
        version = np.lib.format.read_magic(head)
        if version not in HEADERS:
            raise UserError(f'{name} is of the .npy version {version}, which plain arrays are not')
        with warnings.catch_warnings(
            action='ignore'
        ):  # of headers that Python 2 wrote, which are read all the same
            shape, fortran, dtype = HEADERS[version](head)
        # Before the first byte of data: a pickled object array is refused by its type.
        if dtype.kind != ('f' if axes else 'U') or axes and dtype.itemsize not in (4, 8):
            expected = 'text' if axes == 0 else 'float32 or float64'
            raise UserError(f'{name} is an array of {str(dtype)[:60]}: expected {expected}')
        if len(shape) != axes or any(
            not 0 < side <= most for side, most in zip(shape, (rows, MAX_FEATURES))
        ):
            raise UserError(
                f'{name} has the shape {str(shape)[:60]}: expected {axes} sides of 1 to {rows}'
            )
        size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        if head.tell() + size != info.file_size:
            raise UserError(
                f'{name} has {info.file_size - head.tell()} bytes for an array of {size}; {AGAIN}'
            )
        data = head.read() + member.read()
    if len(data) != size:
        raise UserError(f'{name} ends early; {AGAIN}')
    return np.frombuffer(data, dtype).reshape(shape, order='F' if fortran else 'C')


def _read_pickle(path, detector):
    """Statistics of EDM2's `.pkl` file, unchecked: a dict of plain arrays, through the reader that
    runs nothing."""
    from fdistill.weights import reader  # What reads a stranger's file is there only for that.

    content = reader.read(path)
    names = {name: row.edm2 for name, row in DETECTORS.items()}
    held = [name for name, key in names.items() if isinstance(content, dict) and key in content]
    if not held:
        raise UserError(
            f'is no statistics file of EDM2: expected a dict with {" or ".join(names.values())}'
        )
    if detector is None and len(held) > 1:
        raise UserError(
            f'has statistics of {" and ".join(held)}: convert it under a protocol of one of them'
        )
    chosen = detector or held[0]
    if chosen not in held:
        raise UserError(f'has statistics of {" and ".join(held)}, not of {chosen}')
    entry = content[names[chosen]]
    if not isinstance(entry, dict) or not all(
        isinstance(entry.get(name), np.ndarray) for name in ('mu', 'sigma')
    ):
        raise UserError(f'its {names[chosen]!r} has no arrays mu and sigma; {AGAIN}')
    return Statistics(
        entry['mu'],
        entry['sigma'],
        content.get('num_images'),
        None,
        chosen,
        path.stem,
        disk.sha256(path),
    )


READERS = {'.npz': _read_npz, '.pkl': _read_pickle}


def _features(protocol):
    """The part of a protocol that decides the features of given images."""
    rules = protocols.get(protocol)
    return rules.detector, rules.resize, rules.size, rules.scaling


def _described(protocol):
    detector, resize, size, scaling = _features(protocol)
    resized = f'resize {resize} to {size}' if size else f'resize {resize}'
    return f'{protocol} ({detector}, {resized}, scaling {scaling})'


def _shown(text):
    """A name out of a file or from the user, on one line and not too long."""
    shown = repr(str(text))
    return shown if len(shown) <= 160 else f'{shown[:160]}...'

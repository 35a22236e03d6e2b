"""Statistics files: mean and covariance of features, read from strangers' files and kept with what
they are of.

| file | arrays |
|---|---|
| EDM, pytorch-fid, clean-fid `.npz` | mu, sigma |
| jax-fid, meanflow `.npz` | ref_mu, ref_sigma |
| ADM `.npz` | mu, sigma, mu_s, sigma_s (spatial), and images, which are not read |
| EDM2 `.pkl` | {num_images, fid: {mu, sigma}, fd_dinov2: {mu, sigma}} |
| fdistill `.npz` | mu, sigma; mu_s, sigma_s, features where there are; `about`: JSON of protocol,
detector, count, origin |

Nothing in a file is run or unpickled here, and no array is read before its name, type, shape and
size have been checked. Our files keep the names mu and sigma, so that the programs of EDM, ADM and
pytorch-fid read them too.
"""

import hashlib
import io
import json
import pathlib
import re
import warnings
import zipfile
from typing import Any, NamedTuple

import numpy as np

import fdistill
from fdistill.errors import UserError, pick
from fdistill.evaluation import protocol as protocols
from fdistill.evaluation.frechet import Moments, frechet_distance
from fdistill.files import disk
from fdistill.files.archive import Refused, open_archive

FORMAT = 1
# More features than any detector has; a covariance of them takes half a gigabyte.
MAX_FEATURES = 8192
# Images whose features a file may keep for KID, precision and recall; of Inception they take 0.8
# GB.
MAX_KEPT = 100_000
MAX_MEMBERS = 64
MAX_ABOUT = 4096
# Covariances hardly compress (to 0.9 of their size); what shrinks a hundredfold is a bomb.
MAX_RATIO, FREE_BYTES = 100, 1 << 20
# Of an .npy header; numpy's own are of 128 bytes.
HEADER_BYTES = 4096

PAIRS = (('mu', 'sigma'), ('ref_mu', 'ref_sigma'))
SPATIAL = ('mu_s', 'sigma_s')
EDM2 = {'inception': 'fid', 'dinov2': 'fd_dinov2'}
# Sum of the variances. That of ImageNet under Inception is 164 to 181 (openai/guided-diffusion,
# issue 166); a sum over the images in place of their mean, or grey levels in place of features,
# falls far outside.
TRACES = {'inception': (1e-6, 1e4), 'dinov2': (1e-6, 1e6)}
# Relative asymmetry and negative eigenvalues that single precision leaves.
ROUNDING = 1e-5

_AGAIN = 'download it again, or make it anew'


class Statistics(NamedTuple):
    """Mean and covariance of features, and what they are of.

    mean: float64 [d].
    covariance: float64 [d, d].
    count: number of images; None where a file does not tell.
    protocol: a key of PROTOCOLS; None where a file does not tell.
    detector: 'inception', 'dinov2', or the name of own features; None where a file does not tell.
    reference: what the images are, e.g. 'cifar10-32x32'.
    source_sha256: hex digest of the file or data they come from, or None.
    spatial_mean, spatial_covariance: of ADM's spatial features, float64 [s] and [s, s], or None.
    written: {'fdistill': version, 'numpy': version} of whoever wrote the file; empty for other
      programs'.
    weights_sha256: hex digest of the detector's weights, see `weights.store`; None where a file
      does not tell.
    features: float32 [M, d] of some of the images, which KID, precision and recall need; or None.
    """

    mean: Any
    covariance: Any
    count: int | None
    protocol: str | None
    detector: str | None
    reference: str
    source_sha256: str | None
    spatial_mean: Any = None
    spatial_covariance: Any = None
    written: dict = {}
    weights_sha256: str | None = None
    features: Any = None


def make(
    features,
    protocol,
    reference,
    *,
    detector=None,
    spatial=None,
    source_sha256=None,
    weights_sha256=None,
    kept=None,
):
    """Statistics of features.

    Args:
      features: Moments, or an iterable of float [B, d].
      protocol: a key of PROTOCOLS.
      reference: what the images are.
      detector: name of the features; None: the protocol's detector.
      spatial: Moments of ADM's spatial features, or an iterable of float [B, s], or None.
      source_sha256: hex digest of the images, see data.sources.fingerprint.
      weights_sha256: hex digest of the detector's weights.
      kept: float [M, d], features of some of the images, or None.

    Returns:
      Statistics.

    Raises:
      UserError: no images, unknown protocol, or numbers that are no statistics of this detector.
    """
    detector = detector or protocols.get(protocol).detector
    moments = _moments(features)
    made = Statistics(
        moments.mean,
        moments.covariance,
        moments.count,
        protocol,
        detector,
        reference,
        source_sha256,
        weights_sha256=weights_sha256,
        features=kept,
    )
    if spatial is not None:
        spatial = _moments(spatial)
        if spatial.count != moments.count:
            raise UserError(
                f'{moments.count} features and {spatial.count} spatial ones: give both of the same images'
            )
        made = made._replace(spatial_mean=spatial.mean, spatial_covariance=spatial.covariance)
    return check(made)


def read(path, detector=None):
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
        raise UserError(f'{_shown(path)}: no readable statistics ({reason}); {_AGAIN}') from error


def vacant(path: disk.Path, where: str = '--out') -> pathlib.Path:
    """As `disk.file_for`, and nothing is there yet: a file of statistics is not to be lost by a
    repeated command."""
    path = disk.file_for(path, where, ('.npz',))
    if path.exists():
        raise UserError(f'{where}={path}: exists; delete it or choose another name')
    return path


def write(path, statistics):
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


def convert(source, out, protocol, count=None, reference=None, detector=None):
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
            f'{_shown(source)}: made under the protocol {found.protocol!r}, whose features are not those '
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


def show(path, detector=None):
    """A statistics file in lines for a human, str; UserError as `read`."""
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
            f'{found.mean.mean():.6g} on average, from {found.mean.min():.6g} to {found.mean.max():.6g}',
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


def digest(statistics):
    """Hexadecimal SHA-256 of mean and covariance, whatever file they lie in."""
    total = hashlib.sha256(np.ascontiguousarray(statistics.mean, np.float64))
    total.update(np.ascontiguousarray(statistics.covariance, np.float64))
    return total.hexdigest()


def same_protocol(ours, theirs):
    """Refuses to compare Statistics that were not made alike.

    Raises:
      UserError: protocols or detectors differ or are not told, or the numbers of features differ.
    """
    for what in ('protocol', 'detector'):
        values = [getattr(statistics, what) for statistics in (ours, theirs)]
        if None in values or values[0] != values[1]:
            one, other = (
                f'{s.reference!r} of {what} {v or "unknown"}'
                for s, v in zip((ours, theirs), values)
            )
            raise UserError(
                f'{one} and {other} cannot be compared: make or convert both under one protocol'
            )
    if len(ours.mean) != len(theirs.mean):
        raise UserError(
            f'{ours.reference!r} has {len(ours.mean)} features, {theirs.reference!r} {len(theirs.mean)}: '
            'they cannot be compared'
        )


def compare(ours, theirs, spatial=False):
    """Frechet distance of two Statistics of one protocol.

    Args:
      ours, theirs: Statistics.
      spatial: of ADM's spatial features (sFID) in place of the usual ones.

    Returns:
      float >= 0.

    Raises:
      UserError: see `same_protocol`; or one has no spatial features.
    """
    same_protocol(ours, theirs)
    if not spatial:
        return frechet_distance(ours.mean, ours.covariance, theirs.mean, theirs.covariance)
    for statistics in (ours, theirs):
        if statistics.spatial_mean is None:
            raise UserError(
                f'{statistics.reference!r} has no spatial statistics: take a reference that has, as of ADM'
            )
    return frechet_distance(
        ours.spatial_mean, ours.spatial_covariance, theirs.spatial_mean, theirs.spatial_covariance
    )


def check(statistics):
    """Refuses numbers that are no mean and covariance, or not of what they claim to be.

    Returns:
      The Statistics, their arrays float64.

    Raises:
      UserError: what is wrong, and what to do.
    """
    mean, covariance = _gaussian('', statistics.mean, statistics.covariance)
    spatial = (statistics.spatial_mean, statistics.spatial_covariance)
    if (spatial[0] is None) != (spatial[1] is None):
        raise UserError(f'only one of the spatial mean and covariance is there; {_AGAIN}')
    if spatial[0] is not None:
        spatial = _gaussian('spatial ', *spatial)
    if statistics.count is not None and (type(statistics.count) is not int or statistics.count < 2):
        raise UserError(f'count {statistics.count!r}: a covariance is of at least two images')
    for what, text in (
        ('reference', statistics.reference),
        ('detector', statistics.detector or 'unknown'),
    ):
        if not isinstance(text, str) or not text.isprintable() or not 0 < len(text) <= 200:
            raise UserError(
                f'{what} {str(text)[:40]!r}: give a name of at most 200 printable characters'
            )
    for what in ('source_sha256', 'weights_sha256'):
        digest = getattr(statistics, what)
        if digest is not None and not re.fullmatch('[0-9a-f]{64}', str(digest)):
            raise UserError(f'{what} {str(digest)[:80]!r}: expected 64 hexadecimal digits')
    kept = statistics.features
    if kept is not None:
        kept = np.asarray(kept)
        if (
            kept.dtype.kind != 'f'
            or kept.ndim != 2
            or kept.shape[1] != len(mean)
            or not 2 <= len(kept) <= MAX_KEPT
        ):
            raise UserError(
                f'features {kept.dtype} {kept.shape}: expected float [M, {len(mean)}], M from 2 to {MAX_KEPT}'
            )
        kept = kept.astype(np.float32)
        if not np.isfinite(kept).all():
            raise UserError(f'the features are not finite; {_AGAIN}')
    if statistics.protocol is not None:
        wanted = protocols.get(statistics.protocol).detector
        if statistics.detector is None or wanted != 'own' and statistics.detector != wanted:
            raise UserError(
                f'detector {statistics.detector!r}: the protocol {statistics.protocol!r} is of {wanted!r}'
            )
    _plausible(statistics.detector, mean, covariance)
    return statistics._replace(
        mean=mean,
        covariance=covariance,
        spatial_mean=spatial[0],
        spatial_covariance=spatial[1],
        features=kept,
    )


def _gaussian(kind, mean, covariance):
    """(mean, covariance) as float64; UserError unless they are what these words mean."""
    mean, covariance = np.asarray(mean), np.asarray(covariance)
    d = mean.size
    if mean.shape != (d,) or covariance.shape != (d, d) or not 0 < d <= MAX_FEATURES:
        raise UserError(
            f'{kind}mean and covariance of shapes {mean.shape} and {covariance.shape}: expected [d] and '
            f'[d, d] with d from 1 to {MAX_FEATURES}'
        )
    if any(
        array.dtype.kind != 'f' or array.dtype.itemsize not in (4, 8)
        for array in (mean, covariance)
    ):
        types = f'{mean.dtype} and {covariance.dtype}'[:80]
        raise UserError(f'{kind}mean and covariance are {types}: expected float32 or float64')
    mean, covariance = mean.astype(np.float64), covariance.astype(np.float64)
    for name, array in (('mean', mean), ('covariance', covariance)):
        if not np.isfinite(array).all():
            raise UserError(f'the {kind}{name} is not finite; {_AGAIN}')
    largest = np.abs(covariance).max()
    # Squares of more than that would overflow.
    if max(largest, np.abs(mean).max()) > 1e100:
        raise UserError(f'the {kind}mean or covariance has entries above 1e100; {_AGAIN}')
    if np.abs(covariance - covariance.T).max() > ROUNDING * largest:
        raise UserError(f'the {kind}covariance is not symmetric; {_AGAIN}')
    # A matrix has no eigenvalue below -s exactly if it has a Cholesky factor once s is added:
    # cheaper than eigenvalues.
    shift = ROUNDING * np.linalg.norm(covariance)
    try:
        np.linalg.cholesky((covariance + covariance.T) / 2 + (shift + 1e-300) * np.eye(d))
    except np.linalg.LinAlgError as error:
        raise UserError(
            f'the {kind}covariance has negative eigenvalues, which no covariance has; {_AGAIN}'
        ) from error
    return mean, covariance


def _plausible(detector, mean, covariance):
    """UserError unless the numbers can be those of the detector; nothing is known of own
    features."""
    if detector not in protocols.DIMENSIONS:
        return
    expected = protocols.DIMENSIONS[detector]
    if len(mean) != expected:
        raise UserError(
            f'{len(mean)} features: the detector {detector!r} has {expected}; name the right protocol'
        )
    if detector == 'inception' and mean.min() < 0:
        raise UserError(
            'a negative mean, where features of Inception are means behind a ReLU; name the right protocol'
        )
    (low, high), trace = TRACES[detector], np.trace(covariance)
    if not low <= trace <= high:
        raise UserError(
            f'the variances sum to {trace:.3g}, those of {detector!r} to something between {low:g} and '
            f'{high:g}; is it a covariance of its features?'
        )


def _read_npz(path, detector):
    """Statistics of an `.npz` file, unchecked."""
    with path.open('rb') as file:
        try:
            archive, members = open_archive(file, r'\w[\w.-]*\.npy', MAX_MEMBERS)
        except Refused as error:
            raise UserError(f'{error}; {_AGAIN}') from error
        members = {name.removesuffix('.npy'): info for name, info in members.items()}
        pairs = [pair for pair in PAIRS if set(pair) & set(members)]
        if len(pairs) != 1 or not set(pairs[0]) <= set(members):
            names = ', '.join(_shown(name) for name in list(members)[:8])
            raise UserError(
                f'has the arrays {names or "(none)"}: expected mu and sigma, or ref_mu and ref_sigma'
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
        raise UserError(f'its `about` is damaged; {_AGAIN}')
    # Only strangers' files may keep silent on these.
    protocols.get(about['protocol'])
    if not isinstance(about['detector'], str):
        raise UserError(f'its `about` names no detector; {_AGAIN}')
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
    """The array of a member with 0 (text), 1 (mean) or 2 (covariance) axes, `rows` at most; nothing
    else is expanded."""
    name = _shown(info.orig_filename)
    largest = HEADER_BYTES + (4 * MAX_ABOUT if axes == 0 else 8 * rows * MAX_FEATURES ** (axes - 1))
    if info.file_size > largest:
        raise UserError(
            f'{name} expands from {info.compress_size} to {info.file_size} bytes, more than statistics have'
        )
    if info.file_size > FREE_BYTES + MAX_RATIO * info.compress_size:
        raise UserError(
            f'{name} expands from {info.compress_size} to {info.file_size} bytes, which no statistics do'
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
                f'{name} has {info.file_size - head.tell()} bytes for an array of {size}; {_AGAIN}'
            )
        data = head.read() + member.read()
    if len(data) != size:
        raise UserError(f'{name} ends early; {_AGAIN}')
    return np.frombuffer(data, dtype).reshape(shape, order='F' if fortran else 'C')


def _read_pickle(path, detector):
    """Statistics of EDM2's `.pkl` file, unchecked: a dict of plain arrays, through the reader that
    runs nothing."""
    from fdistill.weights.reader import read as read_foreign

    content = read_foreign(path)
    held = [name for name, key in EDM2.items() if isinstance(content, dict) and key in content]
    if not held:
        raise UserError(
            f'is no statistics file of EDM2: expected a dict with {" or ".join(EDM2.values())}'
        )
    if detector is None and len(held) > 1:
        raise UserError(
            f'has statistics of {" and ".join(held)}: convert it under a protocol of one of them'
        )
    chosen = detector or held[0]
    if chosen not in held:
        raise UserError(f'has statistics of {" and ".join(held)}, not of {chosen}')
    entry = content[EDM2[chosen]]
    if not isinstance(entry, dict) or not all(
        isinstance(entry.get(name), np.ndarray) for name in ('mu', 'sigma')
    ):
        raise UserError(f'its {EDM2[chosen]!r} has no arrays mu and sigma; {_AGAIN}')
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


def _moments(features):
    """Moments of an iterable of features, or those given."""
    if isinstance(features, Moments):
        moments = features
    else:
        moments = None
        for block in features:
            moments = (moments or Moments.empty(np.shape(block)[-1])).update(block)
    if moments is None or moments.count < 2:
        raise UserError('statistics need the features of at least two images')
    return moments


def _features(protocol):
    """What of a protocol decides the features of given images."""
    rules = protocols.get(protocol)
    return rules.detector, rules.resize, rules.size, rules.scaling


def _described(protocol):
    detector, resize, size, scaling = _features(protocol)
    return f'{protocol} ({detector}, resize {resize}{f" to {size}" if size else ""}, scaling {scaling})'


def _shown(text):
    """A name out of a file or from the user, on one line and not too long."""
    shown = repr(str(text))
    return shown if len(shown) <= 160 else f'{shown[:160]}...'

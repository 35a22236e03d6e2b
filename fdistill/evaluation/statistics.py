"""Mean and covariance of features, and what they are of; `statistics_files` keeps them."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from fdistill.errors import UserError
from fdistill.evaluation import protocol as protocols
from fdistill.evaluation.frechet import Moments, frechet_distance
from fdistill.weights.detectors import DETECTORS

# More features than any detector has; a covariance of them takes half a gigabyte.
MAX_FEATURES = 8192
# Images whose features may be kept for KID, precision and recall; of Inception they take 0.8 GB.
MAX_KEPT = 100_000
# Relative asymmetry and negative eigenvalues that single precision leaves.
ROUNDING = 1e-5
# What to do with a damaged file.
AGAIN = 'download it again, or make it anew'


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

    mean: np.ndarray
    covariance: np.ndarray
    count: int | None
    protocol: str | None
    detector: str | None
    reference: str
    source_sha256: str | None
    spatial_mean: np.ndarray | None = None
    spatial_covariance: np.ndarray | None = None
    written: Mapping[str, str] = {}
    weights_sha256: str | None = None
    features: np.ndarray | None = None


def make(
    features: Moments | Iterable[np.ndarray],
    protocol: str,
    reference: str,
    *,
    detector: str | None = None,
    spatial: Moments | Iterable[np.ndarray] | None = None,
    source_sha256: str | None = None,
    weights_sha256: str | None = None,
    kept: np.ndarray | None = None,
) -> Statistics:
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
                f'{moments.count} features and {spatial.count} spatial ones: give both of the same '
                'images'
            )
        made = made._replace(spatial_mean=spatial.mean, spatial_covariance=spatial.covariance)
    return check(made)


def digest(statistics: Statistics) -> str:
    """Hexadecimal SHA-256 of mean and covariance, whatever file they lie in."""
    total = hashlib.sha256(np.ascontiguousarray(statistics.mean, np.float64))
    total.update(np.ascontiguousarray(statistics.covariance, np.float64))
    return total.hexdigest()


def same_protocol(ours: Statistics, theirs: Statistics) -> None:
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
            f'{ours.reference!r} has {len(ours.mean)} features, '
            f'{theirs.reference!r} {len(theirs.mean)}: they cannot be compared'
        )


def compare(ours: Statistics, theirs: Statistics, spatial: bool = False) -> float:
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
                f'{statistics.reference!r} has no spatial statistics: take a reference that has, '
                'as of ADM'
            )
    return frechet_distance(
        ours.spatial_mean, ours.spatial_covariance, theirs.spatial_mean, theirs.spatial_covariance
    )


def check(statistics: Statistics) -> Statistics:
    """Refuses numbers that are no mean and covariance, or not of what they claim to be.

    Returns:
      The Statistics, their arrays float64.

    Raises:
      UserError: what is wrong, and what to do.
    """
    mean, covariance = _gaussian('', statistics.mean, statistics.covariance)
    spatial = (statistics.spatial_mean, statistics.spatial_covariance)
    if (spatial[0] is None) != (spatial[1] is None):
        raise UserError(f'only one of the spatial mean and covariance is there; {AGAIN}')
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
                f'features {kept.dtype} {kept.shape}: expected float [M, {len(mean)}], M from 2 to '
                f'{MAX_KEPT}'
            )
        kept = kept.astype(np.float32)
        if not np.isfinite(kept).all():
            raise UserError(f'the features are not finite; {AGAIN}')
    if statistics.protocol is not None:
        wanted = protocols.get(statistics.protocol).detector
        if statistics.detector is None or wanted != 'own' and statistics.detector != wanted:
            raise UserError(
                f'detector {statistics.detector!r}: the protocol {statistics.protocol!r} is of '
                f'{wanted!r}'
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
            f'{kind}mean and covariance of shapes {mean.shape} and {covariance.shape}: '
            f'expected [d] and [d, d] with d from 1 to {MAX_FEATURES}'
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
            raise UserError(f'the {kind}{name} is not finite; {AGAIN}')
    largest = np.abs(covariance).max()
    # Squares of more than that would overflow.
    if max(largest, np.abs(mean).max()) > 1e100:
        raise UserError(f'the {kind}mean or covariance has entries above 1e100; {AGAIN}')
    if np.abs(covariance - covariance.T).max() > ROUNDING * largest:
        raise UserError(f'the {kind}covariance is not symmetric; {AGAIN}')
    # A matrix has no eigenvalue below -s exactly if it has a Cholesky factor once s is added:
    # cheaper than eigenvalues.
    shift = ROUNDING * np.linalg.norm(covariance)
    try:
        np.linalg.cholesky((covariance + covariance.T) / 2 + (shift + 1e-300) * np.eye(d))
    except np.linalg.LinAlgError as error:
        raise UserError(
            f'the {kind}covariance has negative eigenvalues, which no covariance has; {AGAIN}'
        ) from error
    return mean, covariance


def _plausible(detector, mean, covariance):
    """UserError unless the numbers can be those of the detector; nothing is known of own
    features."""
    if detector not in DETECTORS:
        return
    row = DETECTORS[detector]
    if len(mean) != row.features:
        raise UserError(
            f'{len(mean)} features: the detector {detector!r} has {row.features}; '
            'name the right protocol'
        )
    if mean.min() < row.lowest:
        raise UserError(
            f'a mean of {mean.min():.3g}, where no feature of {detector!r} is below '
            f'{row.lowest:g}; name the right protocol'
        )
    (low, high), trace = row.traces, np.trace(covariance)
    if not low <= trace <= high:
        raise UserError(
            f'the variances sum to {trace:.3g}, those of {detector!r} to something between {low:g} '
            f'and {high:g}; is it a covariance of its features?'
        )


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

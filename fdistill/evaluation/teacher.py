"""How well a teacher denoises data, beside what needs no teacher: the numbers of `fdistill
check-teacher`.

Of all functions of x + sigma eps and sigma, E[x | x + sigma eps] has the least squared error, for
every law of the data. So whatever a teacher is compared with here, a good one is not worse: the
noisy sample itself, the mean of the data, the best linear denoiser, and the teacher with its input
or its output read in another convention.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tqdm

from fdistill.diffusion.noise import WEIGHTINGS

# denoise(x [B, ...], sigma [B], condition {name: [B, ...]}) -> x0 [B, ...], numpy; any B.
Denoise = Callable[[np.ndarray, np.ndarray, Mapping[str, np.ndarray]], np.ndarray]

LARGEST = 4096  # dimensions of a covariance that is decomposed: 3072 take 30 s and 1.4 GiB
FITTED = 2**26  # values of the samples that it is estimated from, at most: half a GiB
# Other readings are tried on samples of so many values in all, but on so many samples at least.
COMPARED, FEWEST = 2**14, 64
# Levels at which the noise neither shows all of the data nor hides it: within this factor of its
# standard deviation.
MIDDLE = 8.0


class Linear(NamedTuple):
    """The best linear denoiser, D(x) = m + C (C + sigma^2)^-1 (x - m), exact for N(m, C) (Wiener).

    mean: m, float64 [...].
    basis: orthonormal columns [d, d]; None: the axes.
    variances: of the data along them, [d].
    std: of all values of the data, a number.
    """

    mean: np.ndarray
    basis: np.ndarray | None
    variances: np.ndarray
    std: float

    def denoise(self, x: np.ndarray, sigma: float) -> np.ndarray:
        """D of x [n, ...] at one sigma, float64 [n, ...]."""
        share = self.variances / (self.variances + sigma**2)
        away = (x - self.mean).reshape(len(x), -1)
        if self.basis is None:
            away = away * share
        else:
            away = (away @ self.basis * share) @ self.basis.T
        return self.mean + away.reshape(x.shape)

    def sample(self, noise: np.ndarray) -> np.ndarray:
        """Samples of N(m, C), float32 [n, ...], from unit noise [n, ...]."""
        away = np.asarray(noise, np.float64).reshape(len(noise), -1) * np.sqrt(self.variances)
        away = away if self.basis is None else away @ self.basis.T
        return np.float32(self.mean + away.reshape(noise.shape))


def linear(samples: np.ndarray) -> Linear:
    """The `Linear` of samples [N, ...].

    C is their covariance; their variances alone where there are fewer than two samples a dimension,
    which would leave directions out, or more than LARGEST dimensions.
    """
    flat = np.asarray(samples, np.float64).reshape(len(samples), -1)
    mean, d = flat.mean(axis=0), flat.shape[1]
    if d <= LARGEST and len(flat) >= 2 * d:
        variances, basis = np.linalg.eigh(np.cov(flat, rowvar=False).reshape(d, d))
    else:
        variances, basis = flat.var(axis=0), None
    shape = samples.shape[1:]
    return Linear(mean.reshape(shape), basis, np.maximum(variances, 0), float(flat.std()))


class Reading(NamedTuple):
    """Another convention that a teacher may follow.

    read(denoise) -> denoise: what it is then.
    text: what would be wrong, and the remedy.
    """

    read: Callable[[Denoise], Denoise]
    text: str


def affine(scale: float, offset: float) -> Callable[[Denoise], Denoise]:
    """How a denoiser of scale x + offset denoises x."""

    def read(denoise):
        def denoised(x, sigma, condition):
            return (denoise(scale * x + offset, scale * sigma, condition) - offset) / scale

        return denoised

    return read


def _negated(denoise):
    return lambda x, sigma, condition: 2 * x - denoise(x, sigma, condition)


def _at(factor):
    return lambda denoise: lambda x, sigma, given: denoise(x, factor * sigma, given)


def _preserving(denoise):
    def denoised(x, sigma, condition):
        total = np.sqrt(1 + sigma**2).reshape(-1, *[1] * (x.ndim - 1))
        return denoise(x / total, sigma, condition)

    return denoised


def _reversed(denoise):
    def denoised(x, sigma, condition):
        return denoise(x[..., ::-1], sigma, condition)[..., ::-1]

    return denoised


def _from_one(denoise):
    def denoised(x, sigma, condition):
        if 'label' in condition:
            label = condition['label']
            condition = {**condition, 'label': np.where(label < 0, label, label + 1)}
        return denoise(x, sigma, condition)

    return denoised


READINGS = {
    'negative noise': Reading(
        _negated, 'its noise has the wrong sign; negate what the network predicts'
    ),
    'half sigma': Reading(
        _at(0.5), 'it takes a level for twice what it is; its schedule, or time_scale, is not this'
    ),
    'twice sigma': Reading(
        _at(2.0),
        'it takes a level for half of what it is; its schedule, or time_scale, is not this',
    ),
    'data in [0, 1]': Reading(
        affine(0.5, 0.5), 'it knows data in [0, 1]; convert a teacher of data in [-1, 1]'
    ),
    'data in [0, 255]': Reading(
        affine(127.5, 127.5), 'it knows data in [0, 255]; convert a teacher of data in [-1, 1]'
    ),
    'data of half the size': Reading(
        affine(0.5, 0.0), 'it knows data of half the size; scale the data, or its sigma_data, by 2'
    ),
    'data of twice the size': Reading(
        affine(2.0, 0.0), 'it knows data of twice the size; scale the data, or its sigma_data, by 2'
    ),
    'variance preserving': Reading(
        _preserving, 'it wants x / sqrt(1 + sigma^2); give it a schedule of such, as vp_linear'
    ),
    'channels reversed': Reading(_reversed, 'it knows the channels in the other order; reverse'),
    'labels from 1': Reading(_from_one, 'its first class is 1, not 0; shift the labels'),
}


def sigma_data(told: float, right: float) -> Reading:
    """A teacher under EDM's preconditioning of `told`, whose network was trained under that of
    `right`.

    The network sees c_in x and ln(sigma)/4. Given x c_in(right)/c_in(told) it sees what it was
    trained on; its answer F then comes out of D = c_skip x + c_out F (arXiv 2206.00364, equation
    7).
    """

    def constants(of, sigma):
        total = np.sqrt(sigma**2 + of**2)
        return of**2 / total**2, sigma * of / total, 1 / total

    def read(denoise):
        def denoised(x, sigma, condition):
            level = sigma.reshape(-1, *[1] * (x.ndim - 1))
            skip, out, into = constants(told, level)
            own_skip, own_out, own_into = constants(right, level)
            moved = x * own_into / into
            answer = (denoise(moved, sigma, condition) - skip * moved) / out
            return own_skip * x + own_out * answer

        return denoised

    return Reading(read, f'its sigma_data is {right:.3g}, not {told:.3g}; set denoiser.sigma_data')


def readings(shape: Sequence[int], labelled: bool, others: Mapping[str, Reading] = {}) -> dict:
    """{name: `Reading`} that make a difference for samples of a shape, and `others`."""
    left_out = {
        'channels reversed': shape[-1] != 3 or len(shape) < 3,
        'labels from 1': not labelled,
    }
    return {name: of for name, of in READINGS.items() if not left_out.get(name)} | dict(others)


def difference(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """{'mean', 'error': its standard error} of one - other over the samples [n] that they share."""
    between = np.asarray(one - other, np.float64)
    return {'mean': float(between.mean()), 'error': _error(between)}


def _error(values):
    return float(values.std(ddof=1) / np.sqrt(len(values)))


class Subject(NamedTuple):
    """What is looked at.

    denoise: `Denoise`.
    x: clean samples, float32 [n, ...], that it was not trained on.
    condition, wrong, nothing: {name: [n, ...]}: of x, of others, and none; {} where there are none.
    """

    denoise: Denoise
    x: np.ndarray
    condition: Mapping[str, np.ndarray]
    wrong: Mapping[str, np.ndarray]
    nothing: Mapping[str, np.ndarray]


def measure(
    subject: Subject,
    linear: Linear,
    sigmas: np.ndarray,
    others: Mapping[str, Reading] = {},
    *,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Errors of a teacher at levels of noise, beside those of what is no teacher.

    All errors are the mean square of D - x over the values of a sample, times
    (sigma^2 + s^2) / (sigma s)^2, EDM's weight (arXiv 2206.00364, section 5), s the standard
    deviation of the data: 1 is the error of s^2/(s^2 + sigma^2) (x + sigma eps) for data of mean 0.

    Args:
      subject: `Subject` of n >= 2 samples.
      linear: `Linear` of other samples of the data.
      sigmas: [L], rising, > 0.
      others: readings besides `READINGS`.
      seed: of the noise.
      progress: show a bar if it takes longer than two seconds.

    Returns:
      {'levels': a row each, {'sigma', 'middle', 'teacher', 'linear', 'mean', 'identity': {'mean',
      'error'}, 'worse': `difference` to the better of mean and identity, 'gain': what the noise
      that it finds has to be multiplied with to fit best, 'moved': rms of D - (x + sigma eps), of
      sigma, 'kept': rms of D - the mean of the data, of s},
      'finite', 'middle': {'teacher', 'linear': number, 'worse': `difference`},
      'readings': {name: {'teacher', 'linear', 'as_given', 'better', 'gain', 'text'}},
      'condition': None, or {'right', 'wrong', 'none': number, 'right_minus_wrong',
      'right_minus_none', 'none_minus_linear': `difference`}}; errors of the last three are means
      over the middle levels. Where something is not finite, there are only 'levels' and 'finite'.
    """
    middle = (sigmas >= linear.std / MIDDLE) & (sigmas <= linear.std * MIDDLE)
    middle = middle if middle.any() else np.ones(len(sigmas), bool)
    tried = readings(subject.x.shape[1:], 'label' in subject.condition, others)
    few = min(max(FEWEST, COMPARED // subject.x[0].size), len(subject.x))
    told = len(subject.x) * (len(sigmas) + 2 * middle.sum() * bool(subject.condition))
    total = int(told + few * middle.sum() * len(tried))
    with tqdm.tqdm(
        desc='denoising',
        total=total,
        unit='sample',
        disable=None if progress else True,
        delay=2,
        leave=False,
    ) as bar:
        levels, errors = [], {}
        for i, sigma in enumerate(sigmas):
            row, own = _level(subject, linear, sigma, _noise(subject.x, seed, i))
            levels.append(row | {'middle': bool(middle[i])})
            for name, values in own.items():
                errors.setdefault(name, []).append(values)
            bar.update(len(subject.x))
        if not all(np.isfinite(row['teacher']['mean']) for row in levels):
            return {'levels': levels, 'finite': False}

        def over(denoise, condition, count):
            """(Errors [count], gain), means over the middle levels."""
            found, x = [], subject.x[:count]
            told = {name: value[:count] for name, value in condition.items()}
            for i in np.flatnonzero(middle):
                noisy = x + np.float32(sigmas[i]) * _noise(subject.x, seed, i)[:count]
                denoised = denoise(noisy, np.full(count, sigmas[i], np.float32), told)
                weight = WEIGHTINGS['edm'](sigmas[i], linear.std)
                found.append((weight * _square(denoised - x), _gain(x, noisy, denoised)))
                bar.update(count)
            errors, gains = zip(*found)
            return np.mean(errors, axis=0), float(np.mean(gains))

        teacher, best = (np.mean(np.array(errors[n])[middle], 0) for n in ('teacher', 'linear'))
        found = {}
        for name, reading in tried.items():
            own, gain = over(reading.read(subject.denoise), subject.condition, few)
            found[name] = {
                'teacher': float(own.mean()),
                'as_given': float(teacher[:few].mean()),
                'linear': float(best[:few].mean()),
                'better': difference(teacher[:few], own),
                'gain': gain,
                'text': reading.text,
            }
        told = None
        if subject.condition:
            wrong, none = (
                over(subject.denoise, given, len(subject.x))[0]
                for given in (subject.wrong, subject.nothing)
            )
            told = {
                'right': float(teacher.mean()),
                'wrong': float(wrong.mean()),
                'none': float(none.mean()),
                'right_minus_wrong': difference(teacher, wrong),
                'right_minus_none': difference(teacher, none),
                'none_minus_linear': difference(none, best),
            }
    return {
        'levels': levels,
        'finite': True,
        'middle': {
            'teacher': float(teacher.mean()),
            'linear': float(best.mean()),
            'worse': difference(teacher, best),
        },
        'readings': found,
        'condition': told,
    }


def _noise(x, seed, level):
    return np.random.default_rng((seed, level)).standard_normal(x.shape, np.float32)


def _gain(x, noisy, denoised):
    """What noisy - D has to be multiplied with to be as near as it can to the noise."""
    moved = np.asarray(noisy - denoised, np.float64)
    return float(np.sum(moved * (noisy - x)) / max(np.sum(moved**2), 1e-300))


def _square(values):
    """Mean square over the values of each sample, float64 [n]."""
    return np.mean(np.asarray(values, np.float64).reshape(len(values), -1) ** 2, axis=1)


def _level(subject, linear, sigma, noise):
    """(A row of `measure`, {name: error of each sample})."""
    x, weight = subject.x, WEIGHTINGS['edm'](sigma, linear.std)
    noisy = x + np.float32(sigma) * noise
    level = np.full(len(x), sigma, np.float32)
    denoised = subject.denoise(noisy, level, subject.condition)
    answers = {
        'teacher': denoised,
        'linear': linear.denoise(noisy, sigma),
        'mean': np.broadcast_to(linear.mean, x.shape),
        'identity': noisy,
    }
    errors = {name: weight * _square(answer - x) for name, answer in answers.items()}
    row = {name: {'mean': float(of.mean()), 'error': _error(of)} for name, of in errors.items()}
    better = min(('mean', 'identity'), key=lambda name: row[name]['mean'])
    row |= {
        'sigma': float(sigma),
        'worse': difference(errors['teacher'], errors[better]),
        'gain': _gain(x, noisy, denoised),
        'moved': float(np.sqrt(_square(noisy - denoised).mean()) / sigma),
        'kept': float(np.sqrt(_square(denoised - linear.mean).mean()) / linear.std),
    }
    return row, errors


def in_blocks(denoise: Callable[..., Any], size: int) -> Denoise:
    """A denoiser that is compiled for `size` samples as one for any number."""

    def denoised(x, sigma, condition):
        made = []
        for indices in _blocks(len(x), size):
            given = {name: np.asarray(value)[indices] for name, value in condition.items()}
            made.append(
                np.asarray(denoise(np.float32(x[indices]), np.float32(sigma[indices]), given))
            )
        return np.concatenate(made)[: len(x)]

    return denoised


def _blocks(count: int, size: int) -> Iterator[np.ndarray]:
    """Indices of blocks of one size; the last is filled with the last sample."""
    for start in range(0, count, size):
        yield np.arange(start, start + size).clip(max=count - 1)

"""Averages of any length, made after training out of the averages that were kept (EDM2's post-hoc
EMA, Karras et al., arXiv 2312.02696, section 3 and appendix C).

An average of power gamma weighs the weights of time tau <= t by p(tau) = (gamma + 1) tau^gamma /
t^(gamma + 1). Its relative width sigma_rel, the standard deviation of p over t, is what averages
are known by: 0.10 is 10 % of training. The average that is wanted is approximated, in least
squares of the profiles p, by a sum of those that there are.
"""

import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from fdistill.errors import UserError
from fdistill.files import disk
from fdistill.weights import denoisers, store

# As EDM2 names its files: ...-KIMG-STD.pkl
_NAME = re.compile(r'-(\d{1,9})-(\d?\.\d{1,9})\.\w+$')


def power(std: float) -> float:
    """gamma of an average of relative width std (equation 126): the root of
    (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) = std^2.

    Args:
      std: in (0, 0.28]; 1/sqrt(12) = .289 has gamma = 0, where all weights are equal.

    Raises:
      ValueError: out of range.
    """
    if not 0 < std <= 0.28:
        raise ValueError(f'std={std}: must lie in (0, 0.28], a share of training; EDM2 has 0.05')
    t = std**-2
    return float(np.roots([1, 7, 16 - t, 12 - t]).real.max())


def decay(std: float, time: float, delta: float) -> float:
    """Factor of the average at `time` when the last `delta` of it is added: (1 - delta/time)^(gamma
    + 1) (equation 127)."""
    return (1 - delta / time) ** (power(std) + 1)


def coefficients(
    times: Sequence[float], stds: Sequence[float], time: float, std: float
) -> np.ndarray:
    """What the averages at hand are multiplied with (algorithm 3), float64 [N] of sum 1.

    Args:
      times, stds: of the averages at hand, [N] each, times > 0 in any unit.
      time, std: of the average that is wanted.

    Raises:
      ValueError: a std out of range.
    """
    powers = np.array([power(one) for one in stds])
    ends = np.asarray(times, np.float64)

    def overlap(a, a_end, b, b_end):
        """Integral of two profiles' product."""
        exponent = np.where(a_end < b_end, b, -a)
        ratio = (a_end / b_end) ** exponent
        return (a + 1) * (b + 1) * ratio / ((a + b + 1) * np.maximum(a_end, b_end))

    gram = overlap(powers[:, None], ends[:, None], powers[None], ends[None])
    wanted = overlap(powers, ends, power(std), float(time))
    found = np.linalg.solve(gram, wanted)
    return found / found.sum()


def place_of(path: disk.Path) -> tuple[int, float]:
    """(Thousands of images, relative width) of a snapshot, as the name of its source says.

    Raises:
      UserError: it does not.
    """
    source = denoisers.about(path).get('source', '')
    found = _NAME.search(source)
    if found is None or not int(found[1]):
        raise UserError(
            f'{path}: its source {source!r:.80} does not end with -KIMG-STD, as EDM2 names its '
            'snapshots; convert them under the names they were published with'
        )
    return int(found[1]), float(found[2])


def reconstruct(paths: Sequence[disk.Path], out: disk.Path, *, std: float) -> dict[str, Any]:
    """Writes an average of another length out of snapshots of one run.

    Args:
      paths: converted snapshots, two or more.
      out: the .safetensors file.
      std: relative width that is wanted at the end of the last snapshot, in (0, 0.28].

    Returns:
      The metadata of the written file.

    Raises:
      UserError: fewer than two snapshots, of different networks, or that do not say their place;
        or values out of range.
    """
    out = disk.file_for(out, 'OUT', ('.safetensors',))
    if len(paths) < 2:
        raise UserError('--with: give one more snapshot, or several; one cannot be another average')
    abouts = [denoisers.about(path) for path in paths]
    for path, about in zip(paths, abouts):
        if about['model'] != abouts[0]['model']:
            raise UserError(f'{path}: is of another network than {paths[0]}')
    times, stds = zip(*map(place_of, paths))
    if len(set(zip(times, stds))) < len(paths):
        raise UserError(f'{", ".join(map(str, paths))}: two are the same snapshot; leave one out')
    try:
        factors = coefficients(times, stds, max(times), std)
    except np.linalg.LinAlgError as error:
        raise UserError(
            f'{", ".join(map(str, paths))}: are too much alike; take others in place of some'
        ) from error
    except ValueError as error:
        raise UserError(f'--{error}') from error
    total: dict[str, np.ndarray] = {}
    shapes = None
    for path, factor in zip(paths, factors):
        arrays, _ = store.load(path, shapes, denoisers.DTYPES)
        shapes = {name: array.shape for name, array in arrays.items()}
        for name, array in arrays.items():
            total[name] = total.get(name, 0) + np.float64(factor) * array
    arrays = {name: array.astype(np.float32) for name, array in total.items()}
    derived = [
        {
            'name': about.get('source', pathlib.Path(path).name),
            'sha256': about.get('source_sha256', ''),
            'licence': about['licence'],
        }
        for path, about in zip(paths, abouts)
    ]
    store.is_there(out, denoisers.KIND, arrays)
    average = {'std': std, 'kimg': max(times), 'factors': factors.tolist()}
    denoisers.save(
        out,
        arrays,
        abouts[0]['model'],
        licence=abouts[0]['licence'],
        derived_from=tuple(derived),
        average=json.dumps(average),
    )
    return denoisers.about(out)

"""Features of many images under a mesh: every process reads its part, sums are float64, and no
image is lost or counted twice."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from fdistill.errors import UserError
from fdistill.evaluation import protocol
from fdistill.evaluation.frechet import Moments
from fdistill.files import disk
from fdistill.files.progress import bar as bar_of
from fdistill.training import sharding
from fdistill.weights import store
from fdistill.weights.detectors import DETECTORS

CHUNK = 4
ROWS = 64
# Rows that are summed at once: adding a batch of a few costs as much as one of these.
BLOCK = 2000


class Extractor(NamedTuple):
    """A detector as a protocol feeds it.

    name: a key of DETECTORS.
    sha256: of its weights.
    apply: (grey [b, H, W, C], numpy, this process's part of a batch, uint8 or float in 0..255) ->
      {output: float32 [b, d]}.
    """

    name: str
    sha256: str
    apply: Callable[[np.ndarray], dict[str, np.ndarray]]


def detector(rules: protocol.Rules, path: disk.Path, mesh: jax.sharding.Mesh) -> Extractor:
    """The feature network of a protocol.

    Args:
      rules: `protocol.Rules`.
      path: safetensors file that `fdistill convert` wrote.
      mesh: of `sharding.make_mesh`; the weights are on each device, a batch is split over all of
        them.

    Returns:
      Extractor.

    Raises:
      UserError: no such file, weights of another network, or a damaged file.
    """
    # In small pieces the layers stay in the cache of a CPU; an accelerator, or a batch split over
    # devices, wants it whole.
    alone_on_cpu = mesh.size == 1 and jax.default_backend() == 'cpu'
    network = DETECTORS[rules.detector].network(CHUNK if alone_on_cpu else None)
    if not path:
        maker = f'fdistill convert {rules.detector} SRC FILE'
        raise UserError(f'detector: the protocol {rules.name!r} needs weights, made by `{maker}`')
    arrays, metadata = store.load(path)
    if metadata.get('kind') != rules.detector:
        raise UserError(
            f'{path}: holds weights {metadata.get("kind")!r}; the protocol {rules.name!r} needs '
            f'{rules.detector!r}'
        )
    try:
        store.check(arrays, network.shapes())
    except ValueError as error:
        raise UserError(f'{path}: {error}; convert the weights again') from error
    params = jax.device_put(network.from_arrays(arrays), sharding.replicated(mesh))
    by_batch = sharding.batch_sharding(mesh)
    # Resized on the device: an image of 299 x 299 floats is a hundred times as large as one of
    # CIFAR-10.
    run = jax.jit(
        lambda params, grey: network.apply(params, protocol.prepare(rules, grey)),
        out_shardings=by_batch,
    )

    def apply(grey):
        values = run(params, jax.make_array_from_process_local_data(by_batch, np.asarray(grey)))
        return {name: local_rows(value) for name, value in values.items()}

    return Extractor(rules.detector, metadata['content_sha256'], apply)


def local_rows(array: jax.Array) -> np.ndarray:
    """The rows of a global array, split by `sharding.batch_sharding`, that this process has; numpy,
    in their order."""
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


class Collected(NamedTuple):
    """Of all processes: moments {name: Moments} and features {name: float32 [N, d]}, in the order
    of the images."""

    moments: Mapping[str, Moments]
    features: Mapping[str, np.ndarray]


def collect(
    images: Callable[[np.ndarray], np.ndarray],
    total: int,
    features: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    *,
    batch_size: int,
    devices: int = 1,
    keep: Iterable[str] = (),
    title: str = 'features',
    progress: bool = True,
) -> Collected:
    """Features of images 0..total-1.

    Each batch is split over the processes; the last is padded, and what is padding is left out of
    every sum.

    Args:
      images: (index int [b]) -> what `features` takes, of the images with these indices.
      total: number of images, >= 2.
      features: -> {name: [b, d]}, as `Extractor.apply`.
      batch_size: images at once, on all devices of all processes; rounded up to a multiple of
        `devices`.
      devices: over which `features` splits a batch.
      keep: names of features to return besides their moments.
      title, progress: of the bar.

    Returns:
      Collected, the same in every process.
    """
    processes, process = jax.process_count(), jax.process_index()
    part = -(-batch_size // max(devices, processes)) * max(devices, processes) // processes
    moments, pending, kept, seen = {}, {}, {name: [] for name in keep}, []

    def add(name):
        values = np.concatenate(pending.pop(name))
        moments[name] = (moments.get(name) or Moments.empty(values.shape[1])).update(values)

    whole = part * processes
    # Every process takes part in every batch, also in one of which it has padding only.
    starts = range(process * part, process * part + -(-total // whole) * whole, whole)
    with bar_of(title, total, 'image', progress and not process) as bar:
        for start in starts:
            index = np.arange(start, start + part)
            inside = index < total
            for name, values in features(images(index.clip(max=total - 1))).items():
                values = np.asarray(values)
                pending.setdefault(name, []).append(values[inside])
                if sum(map(len, pending[name])) >= BLOCK:
                    add(name)
                if name in kept:
                    kept[name].append(values)
            seen.append(index)
            bar.update(min(whole, total - bar.n))
    for name in list(pending):
        add(name)
    moments = {name: _merged(one) for name, one in moments.items()}
    if wrong := {name: one.count for name, one in moments.items() if one.count != total}:
        raise RuntimeError(
            f'features of {wrong} images, not of {total}: images were lost or counted twice'
        )
    order = np.argsort(_gathered(np.concatenate(seen)))[:total]
    return Collected(
        moments, {name: _gathered(np.concatenate(values))[order] for name, values in kept.items()}
    )


def _merged(moments):
    """The moments of all processes, summed in their order so that each process has the same."""
    if jax.process_count() == 1:
        return moments
    heads = _float64(np.concatenate([[float(moments.count)], moments.mean]))
    counts, means = heads[:, 0], heads[:, 1:]
    mean = counts @ means / counts.sum()
    delta = moments.mean - mean
    scatter = moments.scatter + moments.count * np.outer(delta, delta)
    # Some rows at a time: the whole matrices of a pod's processes would fill a device.
    rows = [
        _float64(scatter[start : start + ROWS]).sum(axis=0) for start in range(0, len(mean), ROWS)
    ]
    return Moments(int(counts.sum()), mean, np.concatenate(rows))


def _float64(values):
    """float64 values [...] of every process -> [processes, ...], as words, for jax would round them
    to float32."""
    words = _each(np.ascontiguousarray(values).view(np.uint32))
    return np.ascontiguousarray(words).view(np.float64)


def _gathered(rows):
    """Rows [n, ...] of every process -> [processes n, ...]."""
    return np.concatenate(list(_each(rows)))


def _each(array):
    if jax.process_count() == 1:
        return array[None]
    return np.asarray(multihost_utils.process_allgather(array))

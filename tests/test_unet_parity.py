"""The U-Nets against EDM's PyTorch networks with the same weights; edm_goldens.py says how those
were recorded."""

import json

import edm_goldens
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdistill.networks import NETWORKS
from fdistill.networks.unet import edm_name


@pytest.fixture(scope='module')
def goldens():
    with np.load(edm_goldens.GOLDENS) as arrays:
        return dict(arrays)


def shapes(network, resolution):
    image = jax.ShapeDtypeStruct((1, resolution, resolution, 3), jnp.float32)
    vector = jax.ShapeDtypeStruct((1,), jnp.float32)
    label = {'label': jax.ShapeDtypeStruct((1,), jnp.int32)}
    return jax.eval_shape(
        network.init, jax.eval_shape(lambda: jax.random.key(0)), image, vector, label
    )


def by_edm_name(params):
    """{EDM's name: (leaf, permutation)}; fails where two parameters have one name."""
    table = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name, permutation = edm_name(tuple(entry.key for entry in path))
        assert name not in table
        table[name] = leaf, permutation
    return table


@pytest.mark.parametrize('case', edm_goldens.CASES)
def test_names_are_a_bijection_to_edm(case, goldens):
    entries = json.loads(str(goldens[f'{case}/entries']))
    table = by_edm_name(shapes(NETWORKS[case](**edm_goldens.CASES[case]), 16))
    assert {name for name in entries if not name.endswith('.resample_filter')} == set(table)
    for name, (leaf, permutation) in table.items():
        assert leaf.shape == tuple(np.array(entries[name])[list(permutation)])


@pytest.mark.parametrize('case', edm_goldens.CASES)
def test_output_and_features_agree_with_edm(case, goldens):
    network = NETWORKS[case](**edm_goldens.CASES[case])
    x, c_noise, label, augment = edm_goldens.inputs()

    entries = json.loads(str(goldens[f'{case}/entries']))

    def load(path, leaf):
        name, permutation = edm_name(tuple(entry.key for entry in path))
        return edm_goldens.weight(name, entries[name]).transpose(permutation)

    params = jax.tree_util.tree_map_with_path(load, shapes(network, 16))
    out, features = jax.jit(network.apply)(params, x, c_noise, {'label': label, 'augment': augment})

    assert len(features) == 3
    recorded = [goldens[f'{case}/out'], *(goldens[f'{case}/feature{i}'] for i in range(3))]
    for ours, edm in zip([out, *(feature[0] for feature in features)], recorded, strict=True):
        error = np.abs(np.asarray(ours) - edm).max() / np.abs(edm).max()
        assert error < 1e-5


# Counted from EDM's networks at these settings; NCSN++ besides its constant frequencies.
@pytest.mark.parametrize(
    'name, settings, count',
    [
        ('ddpmpp', dict(resolution=32, augment_dim=9, num_classes=10), 55_735_299),
        ('ddpmpp', dict(resolution=32, augment_dim=9), 55_733_891),
        ('ncsnpp', dict(resolution=32, augment_dim=9, num_classes=10), 56_400_643),
        ('ncsnpp', dict(resolution=32, augment_dim=9), 56_397_827),
        ('adm', dict(resolution=64, num_classes=1000), 295_899_267),
    ],
)
def test_published_parameter_counts(name, settings, count):
    table = by_edm_name(shapes(NETWORKS[name](**settings), settings['resolution']))
    assert sum(leaf.size for key, (leaf, _) in table.items() if key != 'map_noise.freqs') == count

"""The FID InceptionV3 is pytorch-fid's network: names, shapes and features, recorded and, where
torch is there, live."""

import importlib.util
import pathlib
import sys

import inception_goldens
import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

from fdistill.errors import UserError
from fdistill.networks import inception

ROOT = pathlib.Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location(
    'bench_inception', ROOT / 'experiments' / 'bench_inception.py'
)
bench = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bench)


@pytest.fixture(scope='module')
def params():
    return inception.from_arrays(
        {name: inception_goldens.weight(name, shape) for name, shape in inception.shapes().items()}
    )


@pytest.fixture(scope='module')
def goldens():
    with np.load(inception_goldens.GOLDENS) as file:
        return dict(file)


apply = jax.jit(inception.apply, static_argnames='chunk')


def assert_close(features, expected, bound=1e-4):
    """The error of each feature, in its largest value and, which is stricter, in what tells the
    images apart."""
    for name, got, wanted in zip(inception.InceptionFeatures._fields, features, expected):
        assert got.shape == wanted.shape and got.dtype == np.float32, name
        assert np.abs(got - wanted).max() <= bound * np.abs(wanted).max(), name
        assert np.linalg.norm(got - wanted) <= bound * np.linalg.norm(wanted - wanted.mean(0)), name


def test_names_and_shapes_are_those_of_pytorch_fid(goldens):
    entries = [entry.split() for entry in goldens['shapes'].tolist()]
    expected = {name: tuple(map(int, shape)) for name, *shape in entries}
    assert inception.shapes() == expected
    trained = sum(
        np.prod(shape) for name, shape in expected.items() if not name.endswith(('mean', 'var'))
    )
    assert trained == 23_834_568 + 8 * 2049  # torchvision's count has 1000 classes


@pytest.mark.parametrize('size', inception_goldens.SIZES)
def test_features_are_those_of_pytorch_fid(params, goldens, size):
    expected = [
        goldens[f'{size[0]}x{size[1]}/{name}'] for name in inception.InceptionFeatures._fields
    ]
    assert_close(apply(params, inception_goldens.images(*size)), expected)


def test_sizes_of_the_features(params):
    got = jax.eval_shape(
        inception.apply, params, jax.ShapeDtypeStruct((5, 299, 299, 3), jnp.float32)
    )
    assert [feature.shape for feature in got] == [(5, 2048), (5, 2023), (5, 1008)]


def test_chunks_change_nothing(params, goldens):
    images, again = inception_goldens.images(75, 75), [0, 1, 0]
    expected = [goldens[f'75x75/{name}'][again] for name in inception.InceptionFeatures._fields]
    assert_close(apply(params, images[again], chunk=2), expected)
    with pytest.raises(ValueError, match='chunk=0: need at least one'):
        inception.apply(params, images, chunk=0)


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(inner)


def test_every_product_is_of_the_highest_precision(params):
    images = jax.ShapeDtypeStruct((2, 80, 80, 3), jnp.float32)
    jaxpr = jax.make_jaxpr(inception.apply)(params, images).jaxpr
    products = [
        e for e in equations(jaxpr) if e.primitive.name in ('dot_general', 'conv_general_dilated')
    ]
    assert len(products) == len(params)  # each layer once
    highest = jax.lax.Precision.HIGHEST
    assert {equation.params['precision'] for equation in products} == {(highest, highest)}
    types = {variable.aval.dtype for equation in equations(jaxpr) for variable in equation.outvars}
    assert {kind for kind in types if jnp.issubdtype(kind, jnp.floating)} == {np.dtype(np.float32)}


def test_random_parameters_keep_activations_of_order_one():
    first, again, other = (inception.draw(jax.random.key(seed))['fc.weight'] for seed in (0, 0, 1))
    assert (first == again).all() and (first != other).mean() > 0.99
    for feature in apply(inception.init(jax.random.key(0)), inception_goldens.images(75, 75)):
        assert 0.1 < np.abs(feature).mean() < 10
        assert np.abs(feature[0] - feature[1]).mean() > 0.02 * np.abs(feature).mean()


@pytest.mark.parametrize(
    'change, message',
    [
        (
            {'fc.bias': None, 'Mixed_6d.branch1x1.bn.running_var': None},
            r'2 missing \(Mixed_6d.*running_var; fc.bias\)',
        ),
        ({'AuxLogits.fc.bias': np.zeros(1000)}, r'1 not of this network \(AuxLogits.fc.bias\)'),
        (
            {'fc.weight': np.zeros((1000, 2048))},
            r'1 of another shape \(fc.weight \(1000, 2048\), not \(1008, 2048\)\)',
        ),
        ({f'{i}': np.zeros(1) for i in range(4)}, r'4 not of this network \(0; 1; 2; \.\.\.\)'),
    ],
)
def test_wrong_arrays_are_named_in_one_line(change, message):
    arrays = {
        name: np.broadcast_to(np.float32(0), shape) for name, shape in inception.shapes().items()
    }
    arrays = {name: array for name, array in (arrays | change).items() if array is not None}
    with pytest.raises(ValueError, match=message) as error:
        inception.from_arrays(arrays)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'shape, kind, message',
    [
        ((2, 74, 299, 3), jnp.float32, r'float32 \[2, 74, 299, 3\]: need .* >= 75'),
        ((2, 3, 299, 299), jnp.float32, r'float32 \[2, 3, 299, 299\]: need float32 \[B, H, W, 3\]'),
        ((299, 299, 3), jnp.float32, r'float32 \[299, 299, 3\]: need'),
        ((2, 299, 299, 3), jnp.uint8, r'uint8 \[2, 299, 299, 3\]: need float32'),
    ],
)
def test_wrong_images_are_named_in_one_line(shape, kind, message):
    with pytest.raises(ValueError, match=message) as error:
        inception.apply({}, jax.ShapeDtypeStruct(shape, kind))
    assert '\n' not in str(error.value)


def test_live_against_pytorch_fid(params):
    pytest.importorskip('pytorch_fid.inception', reason='pytorch-fid is not installed')
    network = inception_goldens.network()
    random = np.random.RandomState(1)
    for size in ((299, 299), (131, 90)):
        images = random.uniform(-1, 1, (2, *size, 3)).astype(np.float32)
        assert_close(apply(params, images), inception_goldens.features(network, images))


def test_benchmark_counts_what_it_measures(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch', None)
    assert bench.main(['--images=3', '--batch=2', '--chunk=0']) == 0
    out = capsys.readouterr().out
    assert '4 images of 32 x 32, batch 2' in out and 'torch not measured' in out
    assert float(out.split('fdistill')[1].split()[0]) > 0


@pytest.mark.parametrize(
    'words, message',
    [
        (['--images=0'], '--images=0: need at least 1'),
        (['--batch=x'], 'invalid int value'),
        (['--chunk=-1'], '--chunk=-1: need at least 0'),
        (['--colour'], 'unrecognized arguments: --colour'),
    ],
)
def test_mistakes_of_the_benchmark_are_one_line(words, message):
    with pytest.raises(UserError, match=message) as error:
        bench.main(words)
    assert '\n' not in str(error.value)

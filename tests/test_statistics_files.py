import io
import json
import pickle
import struct
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest

import fdistill
from fdistill.errors import UserError
from fdistill.evaluation import statistics
from fdistill.evaluation.frechet import Moments, frechet_distance
from fdistill.evaluation.statistics import Statistics, compare, make, same_protocol
from fdistill.evaluation.statistics_files import convert, read, show, write
from fdistill.weights import reader
from fdistill.weights.detectors import DETECTORS

D = 6
SHA = 'ab' * 32


def features(n=50, d=D, seed=0):
    return np.random.default_rng(seed).gamma(2.0, 0.2, (n, d))


def gaussian(d=D, seed=0, n=50):
    moments = Moments.empty(d).update(features(n, d, seed))
    return moments.mean, moments.covariance


def own(**changes):
    made = make([features()], 'own-features', 'digits', detector='digits-clf', source_sha256=SHA)
    return made._replace(**changes)


def npy(array, **options):
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(array), **options)
    return file.getvalue()


def header(text, version=(1, 0), length=None):
    """The beginning of an .npy member with any text as its header, and any length claimed for
    it."""
    text = text.encode('latin1')
    size = struct.pack('<H' if version == (1, 0) else '<I', len(text) if length is None else length)
    return b'\x93NUMPY' + bytes(version) + size + text


def archive(path, compression=zipfile.ZIP_STORED, **members):
    """A zip archive of the members {name without .npy: array or bytes}."""
    with zipfile.ZipFile(path, 'w', compression) as file:
        for name, content in members.items():
            file.writestr(f'{name}.npy', content if isinstance(content, bytes) else npy(content))
    return path


MU, SIGMA = gaussian()
INDEFINITE = SIGMA - 1.1 * np.linalg.eigvalsh(SIGMA)[0] * np.eye(D)
ASYMMETRIC = SIGMA + 1e-3 * np.triu(np.ones((D, D)), 1)
ABOUT = {
    'format': 1,
    'protocol': 'own-features',
    'detector': 'digits-clf',
    'count': 50,
    'reference': 'digits',
    'source_sha256': SHA,
    'weights_sha256': None,
    'written': {'fdistill': '0'},
}


def about(**changes):
    return np.array(json.dumps(ABOUT | changes))


class Bomb:
    """An object whose unpickling would be seen."""

    def __reduce__(self):
        return exec, ('import fdistill; fdistill.unpickled = True',)


def text_file(path):
    path.write_text('<html>404 Not Found</html>\n' * 20)


def truncated(path):
    archive(path, mu=MU, sigma=SIGMA)
    path.write_bytes(path.read_bytes()[:-60])


def flipped(path):
    # One bit of the covariance: the archive's CRC tells.
    archive(path, mu=MU, sigma=SIGMA)
    data = bytearray(path.read_bytes())
    data[data.index(b'sigma.npy') + 200] ^= 1
    path.write_bytes(data)


def encrypted(path):
    archive(path, mu=MU, sigma=SIGMA)
    data = bytearray(path.read_bytes())
    for signature, offset in ((b'PK\1\2', 8), (b'PK\3\4', 6)):
        start = data.index(signature)
        data[start + offset] |= 1
    path.write_bytes(data)


def lying(path):
    # The directory says eight bytes less than the member has.
    archive(path, mu=MU, sigma=SIGMA)
    data = bytearray(path.read_bytes())
    start = data.index(b'PK\1\2')
    for offset in (20, 24):
        data[start + offset : start + offset + 4] = struct.pack('<L', len(npy(MU)) - 8)
    path.write_bytes(data)


def giant_directory(path):
    archive(path, mu=MU, sigma=SIGMA)
    data = bytearray(path.read_bytes())
    data[-10:-6] = struct.pack('<L', 1 << 30)
    path.write_bytes(data)


def crowd(path):
    with zipfile.ZipFile(path, 'w') as file:
        for i in range(100):
            file.writestr(f'a{i}.npy', b'')


def twice(path):
    with zipfile.ZipFile(path, 'w') as file, warnings.catch_warnings(action='ignore'):
        for array in (MU, SIGMA, MU):
            file.writestr('mu.npy' if array.ndim == 1 else 'sigma.npy', npy(array))


def climbing(path):
    with zipfile.ZipFile(path, 'w') as file:
        file.writestr('mu.npy', npy(MU))
        file.writestr('sigma.npy', npy(SIGMA))
        file.writestr('../../etc/cron.d/job\n.npy', b'x')


def zip_of(**members):
    return lambda path: archive(path, **members)


def squeezed(**members):
    return lambda path: archive(path, zipfile.ZIP_DEFLATED, **members)


def pickled_array(path):
    np.savez(path, mu=np.array([Bomb()], object), sigma=SIGMA)


def claim(shape, descr='<f8', **options):
    return header(
        f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n", **options
    )


SIDE = 2900
ZEROS = b'\0' * (8 * SIDE**2)

# name: (how the file is made, what its refusal says)
CORPUS = {
    'empty': (lambda path: path.write_bytes(b''), 'is no zip archive'),
    'text': (text_file, 'is no zip archive'),
    'pickle named npz': (lambda path: path.write_bytes(pickle.dumps(Bomb())), 'is no zip archive'),
    'npy named npz': (lambda path: path.write_bytes(npy(SIGMA)), 'is no zip archive'),
    'truncated': (truncated, 'ends early'),
    'flipped bit': (flipped, 'CRC'),
    'encrypted': (encrypted, 'encrypted'),
    'sizes that lie': (lying, 'CRC'),
    'giant directory': (giant_directory, 'before or behind'),
    'many members': (crowd, 'more than 64 members'),
    'two of a name': (twice, 'two members'),
    'climbing name': (climbing, 'a member of the name'),
    'no arrays': (zip_of(), 'none'),
    'wrong keys': (zip_of(mean=MU, cov=SIGMA), "has the arrays 'mean', 'cov'"),
    'no covariance': (zip_of(mu=MU), 'expected mu and sigma'),
    'both names': (zip_of(mu=MU, sigma=SIGMA, ref_mu=MU, ref_sigma=SIGMA), 'expected mu and sigma'),
    'half a spatial': (zip_of(mu=MU, sigma=SIGMA, mu_s=MU), 'only one of mu_s and sigma_s'),
    'objects': (pickled_array, 'array of object'),
    'objects in disguise': (
        zip_of(
            mu=header("{'descr': '|O', 'fortran_order': False, 'shape': (6,), }") + b'\0' * 48,
            sigma=SIGMA,
        ),
        'array of object',
    ),
    'structured': (
        zip_of(
            mu=np.zeros(D, [('a', '<f8'), ('b', 'O')]).astype([('a', '<f8'), ('b', '<f8')]),
            sigma=SIGMA,
        ),
        'expected float32',
    ),
    'integers': (zip_of(mu=np.arange(D), sigma=SIGMA), 'expected float32'),
    'half precision': (zip_of(mu=MU.astype(np.float16), sigma=SIGMA), 'expected float32'),
    'complex': (zip_of(mu=MU, sigma=SIGMA.astype(complex)), 'expected float32'),
    'text array': (zip_of(mu=np.array(['a'] * D), sigma=SIGMA), 'expected float32'),
    'column': (zip_of(mu=MU[:, None], sigma=SIGMA), 'has the shape'),
    'not square': (zip_of(mu=MU, sigma=SIGMA[:-1]), 'of shapes'),
    'other d': (zip_of(mu=MU[:-1], sigma=SIGMA), 'of shapes'),
    'no features': (zip_of(mu=MU[:0], sigma=SIGMA[:0, :0]), 'has the shape'),
    'scalar': (zip_of(mu=np.float64(1), sigma=np.float64(1)), 'has the shape'),
    'nan': (zip_of(mu=MU, sigma=np.where(np.eye(D), np.nan, SIGMA)), 'not finite'),
    'infinite': (zip_of(mu=np.where(MU > 0, np.inf, MU), sigma=SIGMA), 'not finite'),
    'enormous': (zip_of(mu=MU, sigma=1e200 * SIGMA), '1e100'),
    'asymmetric': (zip_of(mu=MU, sigma=ASYMMETRIC), 'not symmetric'),
    'indefinite': (zip_of(mu=MU, sigma=INDEFINITE), 'negative eigenvalues'),
    'negative': (zip_of(mu=MU, sigma=-SIGMA), 'negative eigenvalues'),
    'zip bomb': (squeezed(mu=MU, sigma=claim((SIDE, SIDE)) + ZEROS), 'expands from'),
    'larger than any': (zip_of(mu=claim((8193,)) + b'\0' * 8 * 20000, sigma=SIGMA), 'expands from'),
    'shape of 10^12': (zip_of(mu=claim((10**12,)), sigma=SIGMA), 'has the shape'),
    'shape of 10^4000': (zip_of(mu=claim(f'({"9" * 3900},)'), sigma=SIGMA), 'has the shape'),
    'negative shape': (zip_of(mu=claim((-6,)) + b'\0' * 48, sigma=SIGMA), 'has the shape'),
    'less data than claimed': (
        zip_of(mu=claim((6,)) + b'\0' * 40, sigma=SIGMA),
        'bytes for an array of',
    ),
    'more data than claimed': (
        zip_of(mu=claim((6,)) + b'\0' * 56, sigma=SIGMA),
        'bytes for an array of',
    ),
    'header of 4 GB': (
        zip_of(mu=claim((6,), version=(2, 0), length=2**32 - 1), sigma=SIGMA),
        'no readable',
    ),
    'long header': (
        zip_of(mu=header("{'descr': " + ' ' * 20000 + '}'), sigma=SIGMA),
        'no readable',
    ),
    'nested header': (zip_of(mu=header('(' * 3000), sigma=SIGMA), 'no readable'),
    'header with code': (
        zip_of(mu=header("__import__('os').system('true')"), sigma=SIGMA),
        'no readable',
    ),
    'unknown version': (
        zip_of(mu=claim((6,), version=(3, 0)) + b'\0' * 48, sigma=SIGMA),
        'version (3, 0)',
    ),
    'no magic': (zip_of(mu=b'\0' * 200, sigma=SIGMA), 'no readable'),
    'about: no JSON': (zip_of(mu=MU, sigma=SIGMA, about=np.array('{')), 'no readable'),
    'about: nested': (zip_of(mu=MU, sigma=SIGMA, about=np.array('[' * 4000)), 'no readable'),
    'about: long': (zip_of(mu=MU, sigma=SIGMA, about=np.array(' ' * 9999)), 'expands from'),
    'about: objects': (
        zip_of(mu=MU, sigma=SIGMA, about=claim((), descr='|O') + b'\0' * 8),
        'array of object',
    ),
    'about: a number': (zip_of(mu=MU, sigma=SIGMA, about=np.array(1.5)), 'expected text'),
    'about: newer': (zip_of(mu=MU, sigma=SIGMA, about=about(format=2)), 'newer'),
    'about: more': (zip_of(mu=MU, sigma=SIGMA, about=about(more=1)), 'newer'),
    'about: unknown protocol': (
        zip_of(mu=MU, sigma=SIGMA, about=about(protocol='edm3')),
        'protocol: unknown',
    ),
    'about: no protocol': (
        zip_of(mu=MU, sigma=SIGMA, about=about(protocol=None)),
        'protocol: unknown',
    ),
    'about: list of protocols': (
        zip_of(mu=MU, sigma=SIGMA, about=about(protocol=['edm'])),
        'no readable',
    ),
    'about: no detector': (zip_of(mu=MU, sigma=SIGMA, about=about(detector=None)), 'no detector'),
    'about: one image': (zip_of(mu=MU, sigma=SIGMA, about=about(count=1)), 'at least two'),
    'about: half an image': (zip_of(mu=MU, sigma=SIGMA, about=about(count=50.5)), 'at least two'),
    'about: terminal codes': (
        zip_of(mu=MU, sigma=SIGMA, about=about(reference='\x1b[2J')),
        'printable',
    ),
    'about: two lines': (zip_of(mu=MU, sigma=SIGMA, about=about(written={'a': 'b\nc'})), 'damaged'),
    'about: no digest': (
        zip_of(mu=MU, sigma=SIGMA, about=about(source_sha256='zz')),
        'hexadecimal',
    ),
    'about: no digest of weights': (
        zip_of(mu=MU, sigma=SIGMA, about=about(weights_sha256=3)),
        'hexadecimal',
    ),
    'features: of objects': (
        zip_of(mu=MU, sigma=SIGMA, about=about(), features=claim((9, D), descr='|O')),
        'array of object',
    ),
    'features: of others': (
        zip_of(mu=MU, sigma=SIGMA, about=about(), features=np.zeros((9, D + 1))),
        'expected float [M, 6]',
    ),
    'features: one': (
        zip_of(mu=MU, sigma=SIGMA, about=about(), features=np.zeros((1, D))),
        'M from 2',
    ),
    'features: not finite': (
        zip_of(mu=MU, sigma=SIGMA, about=about(), features=np.full((9, D), np.nan)),
        'not finite',
    ),
    'features: too many': (
        zip_of(mu=MU, sigma=SIGMA, about=about(), features=claim((10**9, D))),
        'has the shape',
    ),
    'about: other detector': (
        zip_of(mu=MU, sigma=SIGMA, about=about(protocol='edm')),
        "is of 'inception'",
    ),
    'about: other dimension': (
        zip_of(mu=MU, sigma=SIGMA, about=about(protocol='edm', detector='inception')),
        '2048',
    ),
}


@pytest.mark.parametrize('name', CORPUS)
def test_broken_files_are_refused_in_one_line_before_they_are_expanded(name, tmp_path):
    path = tmp_path / 'file.npz'
    build, reason = CORPUS[name]
    build(path)
    tracemalloc.start()
    try:
        with pytest.raises(UserError) as caught:
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert reason in message and message.startswith(repr(str(path))), message
    assert message.isprintable() and len(message) < 500 and not hasattr(fdistill, 'unpickled')


@pytest.mark.parametrize('compression', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_files_with_random_bytes_are_read_as_they_were_or_refused(compression, tmp_path):
    path = archive(tmp_path / 'a.npz', compression, mu=MU, sigma=SIGMA, about=about())
    whole, random, refused = path.read_bytes(), np.random.RandomState(0), 0
    for _ in range(200):
        data = bytearray(whole)
        for place in random.randint(0, len(data), random.randint(1, 4)):
            data[place] = random.randint(256)
        path.write_bytes(data)
        try:
            found = read(path)
        except UserError as error:
            assert '\n' not in str(error)
            refused += 1
        else:
            np.testing.assert_array_equal(found.mean, MU)
            np.testing.assert_array_equal(found.covariance, SIGMA)
    assert refused > 100


@pytest.mark.parametrize(
    'build',
    [
        zip_of(mu=MU, sigma=SIGMA),
        squeezed(mu=MU, sigma=SIGMA),
        zip_of(ref_mu=MU, ref_sigma=SIGMA),
        squeezed(mu=MU, sigma=SIGMA, arr_0=ZEROS),
    ],
    ids=['edm', 'clean-fid', 'meanflow', 'images beside'],
)
def test_strangers_files_are_read(build, tmp_path):
    path = tmp_path / 'cifar10-32x32.npz'
    build(path)
    found = read(path)
    np.testing.assert_array_equal(found.mean, MU)
    np.testing.assert_array_equal(found.covariance, SIGMA)
    assert (found.protocol, found.detector, found.count, found.reference) == (
        None,
        None,
        None,
        'cifar10-32x32',
    )
    assert len(found.source_sha256) == 64 and found.spatial_mean is None


@pytest.mark.parametrize('dtype', ['<f4', '>f4', '<f8', '>f8'])
@pytest.mark.parametrize('order', 'CF')
def test_types_and_orders(dtype, order, tmp_path):
    path = archive(
        tmp_path / 'a.npz', mu=MU.astype(dtype), sigma=np.asarray(SIGMA, dtype, order=order)
    )
    found = read(path)
    assert found.covariance.dtype == np.float64 and found.mean.dtype == np.float64
    np.testing.assert_allclose(found.covariance, SIGMA, rtol=1e-6)


def test_headers_of_python_2_are_read(tmp_path):
    old = header("{'descr': '<f8', 'fortran_order': False, 'shape': (6L,), }") + MU.tobytes()
    np.testing.assert_array_equal(read(archive(tmp_path / 'a.npz', mu=old, sigma=SIGMA)).mean, MU)


def test_singular_and_single_precision_covariances_pass(tmp_path):
    mu, sigma = gaussian(40, n=10)
    found = read(archive(tmp_path / 'a.npz', mu=mu, sigma=sigma.astype(np.float32)))
    assert np.linalg.matrix_rank(found.covariance, tol=1e-4) == 9
    read(archive(tmp_path / 'b.npz', mu=mu, sigma=0 * sigma))


@pytest.mark.parametrize('relative, passes', [(1e-7, True), (1e-3, False)])
def test_eigenvalues_may_be_negative_by_rounding_only(relative, passes, tmp_path):
    values, vectors = np.linalg.eigh(SIGMA)
    values[0] = -relative * values[-1]
    path = archive(tmp_path / 'a.npz', mu=MU, sigma=(vectors * values) @ vectors.T)
    if passes:
        read(path)
    else:
        with pytest.raises(UserError, match='negative eigenvalues'):
            read(path)


def test_spatial_statistics_of_adm(tmp_path):
    mu_s, sigma_s = gaussian(4, seed=1)
    images = np.zeros((3, 2, 2, 3), np.uint8)
    path = archive(
        tmp_path / 'adm.npz', mu=MU, sigma=SIGMA, mu_s=mu_s, sigma_s=sigma_s, arr_0=images
    )
    found = read(path)
    np.testing.assert_array_equal(found.spatial_covariance, sigma_s)
    with pytest.raises(UserError, match='the spatial covariance is not symmetric'):
        read(archive(path, mu=MU, sigma=SIGMA, mu_s=mu_s, sigma_s=np.triu(sigma_s)))


@pytest.mark.parametrize('spatial', [False, True])
def test_written_files_come_back_and_other_programs_read_them(spatial, tmp_path):
    made = make(
        [features()],
        'own-features',
        'digits',
        detector='digits-clf',
        source_sha256=SHA,
        spatial=[features(d=4, seed=1)] if spatial else None,
    )
    path = tmp_path / 'digits.npz'
    write(path, made)
    found = read(path)
    assert found._replace(written={})[2:7] == made[2:7] and found.count == 50
    for one, other in zip(found, made):
        if isinstance(other, np.ndarray):
            np.testing.assert_array_equal(one, other)
    assert (found.spatial_mean is not None) == spatial
    assert found.written == {'fdistill': fdistill.__version__, 'numpy': np.__version__}
    with np.load(path, allow_pickle=False) as theirs:  # as EDM and pytorch-fid do
        np.testing.assert_array_equal(theirs['mu'], made.mean)
        np.testing.assert_array_equal(theirs['sigma'], made.covariance)
    first = path.read_bytes()
    write(path, made)
    assert path.read_bytes() == first


@pytest.mark.parametrize(
    'changes, reason',
    [
        (dict(protocol=None), 'without a protocol'),
        (dict(protocol='edm3'), 'protocol: unknown'),
        (dict(covariance=INDEFINITE), 'negative eigenvalues'),
        (dict(mean=MU.astype(np.float16)), 'expected float32'),
        (dict(reference=''), 'printable'),
        (dict(detector=None), "is of 'own'"),
        (dict(source_sha256='1'), 'hexadecimal'),
        (dict(count=True), 'at least two'),
        (dict(spatial_mean=MU), 'only one of the spatial'),
    ],
)
def test_nothing_is_written_that_is_not_read(changes, reason, tmp_path):
    with pytest.raises(UserError, match=reason):
        write(tmp_path / 'a.npz', own(**changes))
    assert not list(tmp_path.iterdir())


def test_the_longest_names_come_back(tmp_path):
    names = dict(reference='\N{GRINNING FACE}' * 200, detector='\N{SNOWMAN}' * 200)
    write(tmp_path / 'a.npz', own(**names))
    found = read(tmp_path / 'a.npz')
    assert (found.reference, found.detector) == tuple(names.values())


def test_writing_needs_a_suffix(tmp_path):
    with pytest.raises(UserError, match='a .npz file'):
        write(tmp_path / 'a.pkl', own())


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / 'a.npz'
    write(path, own())
    before = path.read_bytes()

    def fail(temporary, **arrays):
        with open(temporary, 'wb') as file:
            file.write(b'PK')
        raise OSError('no space left')

    monkeypatch.setattr(np, 'savez', fail)
    with pytest.raises(OSError, match='no space'):
        write(path, own(count=51))
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ['a.npz']


@pytest.mark.parametrize(
    'name, reason',
    [
        ('no.npz', 'no such file'),
        ('.', 'no file but a folder'),
        ('a.txt', "suffix of a statistics file: unknown '.txt'"),
    ],
)
def test_no_file(name, reason, tmp_path):
    (tmp_path / 'a.txt').touch()
    with pytest.raises(UserError, match=reason):
        read(tmp_path / name)


def test_make_takes_moments_or_blocks():
    x = features(101)
    whole = make(Moments.empty(D).update(x), 'own-features', 'a', detector='f')
    blocks = make(
        (x[start : start + 7] for start in range(0, 101, 7)), 'own-features', 'a', detector='f'
    )
    assert whole.count == blocks.count == 101 and whole.detector == 'f'
    np.testing.assert_allclose(blocks.covariance, np.cov(x, rowvar=False), rtol=1e-12)
    np.testing.assert_allclose(blocks.covariance, whole.covariance, rtol=1e-12)


@pytest.mark.parametrize('given', [[], [features(1)]])
def test_make_needs_two_images(given):
    with pytest.raises(UserError, match='at least two'):
        make(given, 'own-features', 'a')


def test_make_takes_both_features_of_the_same_images():
    with pytest.raises(UserError, match='same images'):
        make([features(50)], 'adm', 'a', spatial=[features(49)])


@pytest.fixture
def small(monkeypatch):
    """The published detectors with few features, since to factor 2048 takes its time."""
    for detector, d in (('inception', D), ('dinov2', D - 1)):
        monkeypatch.setitem(DETECTORS, detector, DETECTORS[detector]._replace(features=d))


@pytest.mark.parametrize('detector, d', [('inception', D), ('dinov2', D - 1)])
def test_detectors_have_their_dimension_and_scale(detector, d, small):
    name = {'inception': 'edm', 'dinov2': 'edm2-dinov2'}[detector]
    like = Statistics(np.full(d, 0.3), 0.09 * np.eye(d), 50000, name, detector, 'a', None)
    assert statistics.check(like).count == 50000
    with pytest.raises(UserError, match=f'{d - 1} features'):
        statistics.check(like._replace(mean=like.mean[1:], covariance=like.covariance[1:, 1:]))
    for scale in (0, 10**8):
        with pytest.raises(UserError, match='variances sum to'):
            statistics.check(like._replace(covariance=scale * like.covariance))
    with pytest.raises(UserError, match='is of'):
        statistics.check(like._replace(detector='digits-clf'))


def test_inception_has_no_negative_mean(small):
    like = Statistics(np.full(D, -0.3), 0.09 * np.eye(D), None, None, 'inception', 'a', None)
    with pytest.raises(
        UserError, match="a mean of -0.3, where no feature of 'inception' is below 0"
    ):
        statistics.check(like)


def test_convert_names_what_a_file_is_of(tmp_path):
    source = archive(tmp_path / 'ref.npz', ref_mu=MU, ref_sigma=SIGMA)
    written = convert(
        source, tmp_path / 'ours.npz', 'own-features', count=50, detector='digits-clf'
    )
    found = read(tmp_path / 'ours.npz')
    assert (
        found[2:7]
        == written[2:7]
        == (50, 'own-features', 'digits-clf', 'ref', read(source).source_sha256)
    )
    np.testing.assert_array_equal(found.covariance, SIGMA)
    assert (
        convert(source, tmp_path / 'b.npz', 'own-features', reference='digits').reference
        == 'digits'
    )
    assert read(tmp_path / 'b.npz').count is None
    again = convert(tmp_path / 'ours.npz', tmp_path / 'c.npz', 'own-features', reference='other')
    assert again.detector == 'digits-clf' and again.count == 50


@pytest.mark.parametrize(
    'changes, reason',
    [
        (dict(count=51), 'its count is 50, not 51'),
        (dict(detector='other'), "of 'digits-clf', not of 'other'"),
        (dict(protocol='edm'), 'not of'),
        (dict(protocol='edm3'), 'protocol: unknown'),
    ],
)
def test_convert_does_not_contradict_the_file(changes, reason, tmp_path):
    write(tmp_path / 'a.npz', own())
    with pytest.raises(UserError, match=reason):
        convert(tmp_path / 'a.npz', tmp_path / 'b.npz', **{'protocol': 'own-features'} | changes)
    assert not (tmp_path / 'b.npz').exists()


def test_a_protocol_is_changed_only_for_one_with_the_same_features(tmp_path, small):
    write(tmp_path / 'a.npz', make([features()], 'edm', 'cifar10'))
    convert(tmp_path / 'a.npz', tmp_path / 'b.npz', 'adm')
    assert read(tmp_path / 'b.npz').protocol == 'adm'
    for other in ('clean-fid', 'pytorch-fid'):
        with pytest.raises(UserError, match='whose features are not those'):
            convert(tmp_path / 'a.npz', tmp_path / 'c.npz', other)


@pytest.fixture
def foreign(monkeypatch):
    """Sets what the reader of pickles returns."""
    content = {}
    monkeypatch.setattr(reader, 'read', lambda path: content['tree'])
    return content


def edm2(n=50000):
    dinov2 = {'mu': np.zeros(D - 1), 'sigma': 2.0 * np.eye(D - 1)}
    return {'num_images': n, 'fid': {'mu': MU, 'sigma': SIGMA}, 'fd_dinov2': dinov2}


def test_edm2_files_hold_two_detectors(foreign, small, tmp_path):
    foreign['tree'] = edm2()
    path = tmp_path / 'img64.pkl'
    path.write_bytes(b'\x80')
    with pytest.raises(
        UserError,
        match='has statistics of inception and dinov2: convert it under a protocol of one',
    ):
        read(path)
    found = read(path, 'dinov2')
    assert (len(found.mean), found.detector, found.count, found.reference) == (
        D - 1,
        'dinov2',
        50000,
        'img64',
    )
    assert convert(path, tmp_path / 'a.npz', 'edm2').detector == 'inception'
    assert len(read(tmp_path / 'a.npz').mean) == D
    assert convert(path, tmp_path / 'b.npz', 'edm2-dinov2').count == 50000
    with pytest.raises(UserError, match='not of own'):
        read(path, 'own')
    with pytest.raises(UserError, match='its count is 50000'):
        convert(path, tmp_path / 'c.npz', 'edm2', count=10)


@pytest.mark.parametrize(
    'tree, reason',
    [
        ([], 'expected a dict with fid or fd_dinov2'),
        ({'fid': [1, 2]}, 'no arrays'),
        ({'fid': {'mu': MU}}, 'no arrays'),
        ({'fid': {'mu': np.array([None] * D), 'sigma': SIGMA}}, 'expected float32'),
        ({'fid': {'mu': MU[1:], 'sigma': SIGMA[1:, 1:]}}, '5 features'),
        ({'num_images': '5', 'fid': edm2()['fid']}, 'at least two'),
    ],
)
def test_broken_pickles_are_refused(tree, reason, foreign, small, tmp_path):
    foreign['tree'] = tree
    (tmp_path / 'a.pkl').touch()
    with pytest.raises(UserError, match=reason) as caught:
        read(tmp_path / 'a.pkl')
    assert '\n' not in str(caught.value)


def test_the_same_protocol_gives_the_distance():
    one, other = (
        make([features(seed=seed)], 'own-features', str(seed), detector='f') for seed in (0, 1)
    )
    assert (
        compare(one, other)
        == frechet_distance(one.mean, one.covariance, other.mean, other.covariance)
        > 0
    )
    with pytest.raises(UserError, match='no spatial'):
        compare(one, other, spatial=True)
    spatial = [
        make(
            [features(seed=0)],
            'own-features',
            'a',
            detector='f',
            spatial=[features(d=3, seed=seed)],
        )
        for seed in (0, 1)
    ]
    assert (
        compare(*spatial) == pytest.approx(0, abs=1e-12) and compare(*spatial, spatial=True) > 1e-4
    )


@pytest.mark.parametrize(
    'changes, reason',
    [
        (dict(protocol='edm'), "protocol own-features and 'digits' of protocol edm"),
        (dict(protocol=None), 'protocol unknown'),
        (dict(detector='pixels'), 'detector pixels'),
        (dict(mean=MU[1:], covariance=SIGMA[1:, 1:]), '6 features'),
    ],
)
def test_other_protocols_are_not_compared(changes, reason):
    for pair in ((own(), own(**changes)),):
        for function in (same_protocol, compare):
            with pytest.raises(UserError, match=reason) as caught:
                function(*pair)
            assert '\n' not in str(caught.value)


def test_show_is_for_humans(tmp_path):
    write(tmp_path / 'a.npz', own())
    text = show(tmp_path / 'a.npz')
    for part in (
        'own-features (own, resize none, scaling none)',
        'digits-clf, 6 features',
        '50 images',
        SHA,
        'a.npz',
    ):
        assert part in text
    archive(tmp_path / 'b.npz', mu=MU, sigma=SIGMA)
    assert show(tmp_path / 'b.npz').count('not told') == 4

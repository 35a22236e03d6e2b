"""Exported models make the samples of the run that they come from."""

import json
import os
import pathlib
import subprocess
import sys
import types
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_autoencoder
from exported import NETWORKS, model
from test_teachers import write_mlp

from fdistill import build, cli, export
from fdistill.build import published
from fdistill.errors import UserError
from fdistill.export import card, folder, onnx, program
from fdistill.export.file import write as write_weights
from fdistill.export.model import opened, sources
from fdistill.files import disk, hub
from fdistill.weights import denoisers, diffusers, store

REMAT = {'network': {'remat': 'blocks'}}
LOADER = """
import sys
sys.modules['fdistill'] = None  # Importing it fails, as where it is not installed.
import numpy as np
from loader import load
np.savez(sys.argv[1], **{f'{n},{label}': load()(3, n, label) for n, label in eval(sys.argv[2])})
"""


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    """A run folder: points of the ring by f-distill, without classes."""
    folder = tmp_path_factory.mktemp('runs') / 'ring'
    with zipfile.ZipFile(pathlib.Path(__file__).parent / 'data' / 'run_folder_0_1.zip') as file:
        file.extractall(folder)
    return folder


def loaded(folder, wanted):
    """{(n, label): samples of the seed 3} that the loader in a folder draws, without fdistill."""
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    words = [sys.executable, '-c', LOADER, 'made.npz', repr(wanted)]
    subprocess.run(words, cwd=folder, check=True, env=environment)
    with np.load(folder / 'made.npz') as file:
        return {eval(name): file[name] for name in file}


@pytest.mark.optimised
def test_programs_draw_what_sample_draws(workdir, tmp_path, capsys):
    """Bit for bit, in another process that has jax alone; also beyond the first batch."""
    out = tmp_path / 'out'
    assert cli.main(['export', f'--workdir={workdir}', '--to=jax', f'--out={out}']) == 0
    assert capsys.readouterr().out.strip() == str(out)
    build.sample(workdir, n=1003, seed=3, out=tmp_path / 'ours.npy')
    ((_, samples),) = loaded(out, [(1003, None)]).items()
    np.testing.assert_array_equal(samples, np.load(tmp_path / 'ours.npy'))
    assert '`f_distill`' in (out / 'README.md').read_text()


@pytest.mark.optimised
@pytest.mark.parametrize('name', ['dit', pytest.param('ddpmpp', marks=pytest.mark.slow)])
def test_programs_take_classes(name, tmp_path):
    exported = model(name)
    program.write(exported, tmp_path)
    for (n, label), samples in loaded(tmp_path, [(5, None), (5, 7)]).items():
        start = exported.run.start(jax.random.key(3), n, label)
        np.testing.assert_array_equal(samples, exported.run.sample(*start))


@pytest.mark.parametrize('name', NETWORKS)
def test_what_onnx_is_made_of_is_the_same_function(name):
    """Also without what makes it ONNX."""
    exported = model(name)
    noise, condition = exported.run.start(jax.random.key(1), 3)
    given = (noise, condition.get('label'))
    weights = {name: jnp.asarray(array) for name, array in exported.weights.items()}
    traced = jax.make_jaxpr(exported.sample)(weights, *given)
    made = jax.jit(lambda *leaves: onnx.replayed(traced, leaves))(
        *jax.tree.leaves((weights, given))
    )
    np.testing.assert_allclose(made[0], exported.run.sample(noise, condition), atol=1e-6)


@pytest.mark.parametrize(
    'name, given',
    [*((name, {}) for name in NETWORKS), ('ddpmpp', {'sampler': 'heun'}), ('ddpmpp', REMAT)],
)
def test_onnx_makes_the_same_images(name, given):
    """Of any batch size; a label of -1 is none."""
    pytest.importorskip('jax2onnx', reason="needs pip install 'fdistill[onnx]'")
    runtime = pytest.importorskip('onnxruntime', reason="needs pip install 'fdistill[onnx]'")
    exported = model(name, **given)
    session = runtime.InferenceSession(onnx.as_bytes(exported))
    for n in (1, 5):
        noise, condition = exported.run.start(jax.random.key(1), n)
        if condition:
            condition['label'] = condition['label'].at[0].set(-1)
        given = {'noise': np.asarray(noise)} | jax.tree.map(np.asarray, condition)
        (images,) = session.run(['images'], given)
        np.testing.assert_allclose(images, exported.run.sample(noise, condition), atol=1e-5)


def test_onnx_computes_in_float32():
    """Also of a network that computes in bfloat16, which few runtimes do."""
    narrow, wide = model('mlp', network={'bfloat16': True}), model('mlp')
    given = (jax.random.normal(jax.random.key(0), (3, 8, 8, 1)), np.arange(3, dtype=np.int32))
    weights = {name: jnp.asarray(array) for name, array in narrow.weights.items()}
    traced = jax.make_jaxpr(narrow.sample)(weights, *given)
    assert 'bf16' in str(traced)
    (made,) = onnx.replayed(traced, jax.tree.leaves((weights, given)))
    np.testing.assert_allclose(made, wide.sample(weights, *given), atol=1e-6)
    assert np.abs(made - narrow.sample(weights, *given)).max() > 1e-4


def test_onnx_has_no_random_numbers():
    with pytest.raises(UserError, match='random_bits has no place in ONNX; use --to=jax'):
        onnx.as_bytes(model('mlp', levels=(0.8,)))


def test_weights_come_back_bit_for_bit(workdir, tmp_path, capsys):
    """As a file that says how the student makes samples; what is exported of it is the same."""
    out = tmp_path / 'out'
    words = [f'--workdir={workdir}', '--to=safetensors', f'--out={out}']
    assert cli.main(['export', *words]) == 2
    assert 'the file says its licence; give --licence=NAME' in capsys.readouterr().err
    assert cli.main(['export', *words, '--licence=MIT']) == 0
    run = build.from_workdir(workdir)
    again = build.from_weights(out / 'model.safetensors')
    for ours, theirs in zip(
        jax.tree.leaves(run.params), jax.tree.leaves(again.params), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    start = run.start(jax.random.key(0), 5)
    np.testing.assert_array_equal(run.sample(*start), again.sample(*start))
    first, second = opened(workdir, licence='MIT'), opened(None, out / 'model.safetensors')
    assert second.derived_from[0]['name'] == 'model.safetensors'
    for name in ('sections', 'method', 'name', 'steps', 'licence'):
        assert getattr(first, name) == getattr(second, name), name


def test_diffusers_gets_a_folder(tmp_path):
    """That gives the same arrays back; of what diffusers has no network for, the reason."""
    exported = model('unet2d')
    folder.write(exported, tmp_path)
    again = diffusers.find(tmp_path, published.shapes_of)
    assert again.arrays.keys() == exported.weights.keys()
    for name, array in exported.weights.items():
        np.testing.assert_array_equal(array, again.arrays[name])
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match="--to=diffusers: diffusers has no network like 'mlp'"):
        folder.write(model('mlp'), tmp_path / 'empty')
    assert not list((tmp_path / 'empty').iterdir())


@pytest.mark.optimised
def test_latents_are_decoded(tmp_path):
    """By the autoencoder, which goes along; its licence too."""
    vae = toy_autoencoder.write(tmp_path / 'vae.safetensors')
    weights = tmp_path / 'model.safetensors'
    write_weights(model('mlp')._replace(licence='MIT'), tmp_path)
    exported = opened(None, weights, vae=vae)
    (out := tmp_path / 'out').mkdir()
    program.write(exported, out)
    ((_, samples),) = loaded(out, [(5, None)]).items()
    start = exported.run.start(jax.random.key(3), 5)
    np.testing.assert_allclose(samples, exported.run.sample(*start), atol=1e-6)
    plain = opened(None, weights).run.sample(*start)
    assert np.abs(samples - plain).max() > 0.1
    own = {'name': vae.name, 'sha256': disk.sha256(vae), 'licence': 'none'}
    assert exported.derived_from[-1] == own and exported.licence == 'MIT AND none'


@pytest.mark.parametrize(
    'damage', [{'method': '[1]'}, {'method': '{"name": 1}'}, {'derived_from': '[{"name": "a"}]'}]
)
def test_a_strangers_file_is_refused_in_one_line(damage, tmp_path):
    exported, file = model('points'), tmp_path / 'a.safetensors'
    exported = exported._replace(licence='MIT')
    write_weights(exported, tmp_path)
    arrays, metadata = store.load(tmp_path / 'model.safetensors')
    store.save(file, arrays, metadata | damage)
    with pytest.raises(UserError, match='its metadata is damaged .*; convert it again'):
        opened(None, file)


SOURCE = {'name': 'edm.pkl', 'sha256': 'ab' * 32, 'licence': 'CC BY-NC-SA 4.0'}


def front_of(text):
    """{name: value} of the front matter of a card."""
    _, front, _ = text.split('---\n', 2)
    return {
        name: json.loads(value) for name, value in (line.split(': ') for line in front.splitlines())
    }


def test_card_says_what_it_is_and_where_it_comes_from():
    protocol = 'fid[edm,50k,cifar10]'
    row = {'step': 3, 'fid': 2.5, 'protocol': {'fid': protocol}}
    about = {'licence': SOURCE['licence'], 'derived_from': (SOURCE,), 'evaluations': [row]}
    text = card.text(model('mlp', **about), 'jax', program.WINDOW)
    front = front_of(text)
    assert front['license'] == 'cc-by-nc-sa-4.0' and front['library_name'] == 'fdistill'
    assert 'f_distill' in front['tags']
    for said in (protocol, '2.5', *SOURCE.values(), 'js', 'six months', '8 x 8 x 1'):
        assert said in text, said
    bare = card.text(model('points'), 'onnx')
    assert front_of(bare)['license'] == 'other' and 'not stated' in bare
    assert 'Made from' not in bare and 'Nothing was measured' in bare


@pytest.mark.parametrize(
    'words, message',
    [
        (['--to=jx'], "unknown 'jx'; did you mean jax?"),
        (['--to=jax', '--out={full}'], 'is there already'),
        (['--to=onnx'], "pip install 'fdistill[onnx]'"),
        (['--to=jax', '--push=me'], 'give OWNER/NAME'),
        (['--to=jax', '--push=me/it'], "pip install 'fdistill[hub]'"),
        (['--to=diffusers', '--steps=3'], '--steps: is not kept by --to=diffusers'),
        (['--to=safetensors', '--steps=3'], 'a student takes neither --sampler nor --steps nor'),
        (['--to=safetensors', '--sampler=heun'], '--sampler: is not kept by --to=safetensors'),
        (['--to=diffusers', '--sampler=heun', '--order=2'], '--sampler: is not kept'),
        (['--to=jax', '--steps=3'], 'a student takes neither --sampler nor --steps nor --guidance'),
    ],
)
def test_refusals(words, message, workdir, tmp_path, capsys, monkeypatch):
    """In one line, before anything is written."""
    for name in ('jax2onnx', 'huggingface_hub'):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'file').touch()
    words = [word.format(full=tmp_path / 'full') for word in words]
    words = ['export', f'--workdir={workdir}', f'--out={tmp_path / "out"}', *words]
    assert cli.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert [path.name for path in tmp_path.iterdir()] == ['full']


def test_what_fails_leaves_nothing(workdir, tmp_path, monkeypatch):
    def write(model, folder):
        (folder / 'half').touch()
        raise UserError('no')

    monkeypatch.setitem(export.TARGETS, 'jax', export.Target(write, ''))
    with pytest.raises(UserError, match='no'):
        export.export(workdir, 'jax', tmp_path / 'out')
    assert not list(tmp_path.iterdir())


def test_push_is_for_those_who_are_logged_in(workdir, tmp_path, monkeypatch):
    calls = []
    api = types.SimpleNamespace(
        endpoint='hub',
        create_repo=lambda name, **given: calls.append((name, given)),
        upload_folder=lambda **given: calls.append(
            (given, sorted(path.name for path in given['folder_path'].iterdir()))
        ),
    )
    hub = types.SimpleNamespace(HfApi=lambda: api, get_token=lambda: None)
    monkeypatch.setitem(sys.modules, 'huggingface_hub', hub)
    target = export.Target(lambda model, folder: (folder / 'weights').touch(), '')
    monkeypatch.setitem(export.TARGETS, 'jax', target)
    out = tmp_path / 'out'
    with pytest.raises(UserError, match='not logged in'):
        export.export(workdir, 'jax', out, push='me/it')
    assert not calls and not out.exists()
    hub.get_token = lambda: 'secret'
    export.export(workdir, 'jax', out, push='me/it')
    made = ('me/it', {'exist_ok': True, 'private': True})
    sent = {'repo_id': 'me/it', 'folder_path': out}
    assert calls == [made, (sent, ['README.md', 'weights'])]
    assert 'secret' not in (out / 'README.md').read_text()


@pytest.mark.parametrize('part', ['teacher', 'start'])
def test_a_licence_comes_along_through_the_parents(part, tmp_path):
    """Of a run whose teacher is a run whose teacher, or start, is a published file."""
    file = tmp_path / 'edm.safetensors'
    image = {'shape': [2], 'num_classes': 0}
    parts = {'network': {'name': 'mlp'}, 'denoiser': {}, 'image': image}
    denoisers.save(file, {'a': np.zeros(1, np.float32)}, parts, licence='CC BY-NC-SA 4.0')
    first = tmp_path / 'first'
    disk.write_json(first / 'config.json', {part: {'weights': str(file)}})
    run = {'teacher': {'workdir': str(first)}, 'start': {'workdir': str(first)}}
    own = {'name': 'edm.safetensors', 'licence': 'CC BY-NC-SA 4.0', 'sha256': disk.sha256(file)}
    assert sources(run, None) == (own,)
    file.unlink()
    with pytest.raises(UserError, match='give --licence=NAME'):
        sources(run, None)
    assert sources(run, 'MIT') == (own | {'licence': 'MIT', 'sha256': 'unknown'},)


def test_a_card_is_no_markup_of_what_a_file_says():
    """Whoever made the weights wrote the names in it."""
    evil = '<script>alert(1)</script>'
    method = {'name': f'x`\n\n# Evil\n{evil}', 'divergence': 'a\n---\nb'}
    exported = model('mlp', licence=f'MIT\nname: x\n---\n{evil}')
    exported = exported._replace(name=f'{evil}|', method=method)
    text = card.text(exported, 'jax')
    front, body = text.split('---\n', 2)[1:]
    assert all(': ' in line for line in front.splitlines())
    outside, settings = body.split('## Settings of the method')
    assert '<script' not in outside and '&lt;script' in outside
    heads = [line for line in outside.splitlines() if line.startswith('#')]
    assert heads[1:] == ['## Use', '## Facts', '## Measured', '## Form']
    assert '\n---\n' not in outside


@pytest.mark.parametrize(
    'given, said',
    [
        ({}, 'heun'),
        ({'sampler': 'euler'}, 'euler'),
        ({'sampler': {'name': 'heun', 'churn': 1}}, 'name heun, churn 1'),
    ],
)
def test_a_card_says_which_solver_samples(given, said):
    assert card._solver({'name': 'pretrain'} | given) == said


@pytest.mark.parametrize(
    'licence, front',
    [
        ('Apache 2.0', {'license': 'apache-2.0'}),
        (
            'MIT (Meta), if these are the published weights',
            {'license': 'other', 'license_name': 'mit-meta-if-these-are-the-published-weights'},
        ),
    ],
)
def test_a_hub_is_told_a_licence_that_it_knows(licence, front):
    """It refuses a card with another, and with it the upload."""
    found = front_of(card.text(model('points', licence=licence), 'jax'))
    assert {name: found[name] for name in found if name.startswith('license')} == front


def test_there_is_no_folder_without_a_name(tmp_path, monkeypatch, capsys, workdir):
    monkeypatch.chdir(tmp_path)
    assert cli.main(['export', f'--workdir={workdir}', '--to=jax', '--out=.']) == 2
    assert cli.main(['sample', '--weights=']) == 2
    long = 'a' * 300
    assert cli.main(['convert', 'teacher', f'{long}/b', 'out.safetensors']) == 2
    assert 'give the name of a new folder' in (said := capsys.readouterr().err)
    assert 'give a shorter name' in said
    assert "--weights='': give the name of a file" in said and not list(tmp_path.iterdir())


def test_names_that_are_no_unicode_are_exported(tmp_path):
    """As of files of another encoding of names."""
    name = os.fsdecode(b'mod\xe8le')
    store.write(tmp_path / 'file.safetensors', {'x': np.zeros(1, np.float32)}, {'source': name})
    assert store.read(tmp_path / 'file.safetensors')[1] == {'source': 'mod\\udce8le'}
    disk.write_text(tmp_path / 'README.md', f'{name}, ü')
    assert (tmp_path / 'README.md').read_bytes().decode() == 'mod\\udce8le, ü'


def test_a_denoiser_may_be_a_teacher_and_a_student_not(tmp_path):
    write_mlp(tmp_path / 'file.safetensors', 0)
    denoiser = opened(None, tmp_path / 'file.safetensors')
    assert 'As a teacher' in card.text(denoiser, 'safetensors')
    said = card.text(model('mlp'), 'safetensors').split('```json')[0]
    assert 'As a teacher' not in said and '{' not in said


def test_a_file_keeps_no_steps_of_a_denoiser(tmp_path):
    write_mlp(tmp_path / 'file.safetensors', 0)
    with pytest.raises(UserError, match='--steps: is not kept by --to=safetensors'):
        export.export(
            None,
            'safetensors',
            tmp_path / 'out',
            weights=tmp_path / 'file.safetensors',
            solver={'steps': 3},
        )
    assert not (tmp_path / 'out').exists()


def test_a_hub_that_is_not_there_is_one_line(tmp_path, monkeypatch):
    """The library that its client sends requests by has errors of its own."""

    def create_repo(*_, **__):
        raise Exception('[Errno 111] Connection refused\nmore')

    api = types.SimpleNamespace(create_repo=create_repo)
    monkeypatch.setitem(sys.modules, 'huggingface_hub', types.SimpleNamespace(HfApi=lambda: api))
    with pytest.raises(UserError, match='Connection refused; .* is written all the same') as caught:
        hub.push(tmp_path, 'me/it')
    assert '\n' not in str(caught.value)

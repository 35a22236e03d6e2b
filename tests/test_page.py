"""The exported page draws the noise and the samples that fdistill draws."""

import base64
import io
import json
import pathlib
import shutil
import subprocess

import jax
import numpy as np
import pytest
from browser import CHROMIUM, Browser
from exported import model
from PIL import Image

from fdistill import cli
from fdistill.errors import UserError
from fdistill.export import onnx, page
from fdistill.files import pictures

TEMPLATE = pathlib.Path(page.__file__).with_suffix('.html').read_text()
SEEDS = (0, 3, 2**31 - 1)


@pytest.mark.skipif(not shutil.which('node'), reason='needs node')
def test_noise_of_the_page():
    """Of jax.random to rounding, classes exactly, also where a class is not a power of two."""
    code = TEMPLATE[TEMPLATE.index('function threefry') : TEMPLATE.index('async function unpacked')]
    for seed in SEEDS:
        exported = model('mlp')
        settings = 'const drawn = 64, classes = 10;'
        ask = f"const [noise, labels] = start({seed}, 40, 'random');"
        ask += f"const mixed = between(noise, start({seed}, 40, 'each')[0], 0.25);"
        ask += 'console.log(JSON.stringify([noise, labels, mixed].map(a => Array.from(a))))'
        words = ['node', '-e', settings + code + ask]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        noise, labels, far = map(np.array, json.loads(done.stdout))
        ours, condition = exported.run.start(jax.random.key(seed), 40)
        np.testing.assert_allclose(noise, np.ravel(ours), rtol=2e-6, atol=1e-7)
        np.testing.assert_array_equal(labels, condition['label'])
        np.testing.assert_allclose(far, 2**0.5 * np.sin(np.pi * 3 / 8) * noise, rtol=1e-6)


def test_page_holds_all_that_it_needs(tmp_path, monkeypatch):
    """And asks for nothing: there is no address in it, and its policy allows none."""
    monkeypatch.setattr(page, 'parts', lambda runtime: {'code': b'code', 'wasm': b'wasm'})
    monkeypatch.setattr(onnx, 'as_bytes', lambda model: b'model')
    exported = model('ddpmpp')._replace(name='<script>alert(1)</script>')
    page.write(exported, tmp_path)
    text = (tmp_path / page.FILE).read_text()
    assert "default-src 'none'" in text and 'http:' not in text and 'https:' not in text
    assert '<script>alert' not in text and '$' not in text
    assert {'shape': [8, 8, 1], 'noise': [8, 8, 1], 'classes': 10} == json.loads(
        _between(text, 'id="settings">')
    )
    for name in ('wasm', 'model'):
        assert page.unpacked(_between(text, f'id="{name}">')) == name.encode()


def _between(text, start):
    return text.split(start, 1)[1].split('</script>', 1)[0]


def test_refusals(tmp_path, monkeypatch):
    """Of what it cannot show, and without its runtime, with what to do."""
    with pytest.raises(UserError, match='shows images of 1 or 3 channels'):
        page.write(model('points'), tmp_path)
    large = {'a': np.broadcast_to(np.float32(0), (page.MOST_BYTES // 4 + 1,))}
    with pytest.raises(UserError, match='the weights take 300 MiB'):
        page.write(model('mlp')._replace(weights=large), tmp_path)
    with pytest.raises(UserError, match='has no dist/.*; where there is a network run `npm pack'):
        page.parts(tmp_path)
    for name in page.FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b'other')
    with pytest.raises(UserError, match='is not that of onnxruntime-web@'):
        page.parts(tmp_path)
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.setenv('FDISTILL_CACHE', str(tmp_path / 'cache'))
    with pytest.raises(UserError, match='npm cannot fetch .*; where there is a network'):
        page.parts(None)
    assert not list(tmp_path.glob('*.html'))


def test_runtime_is_for_the_page(tmp_path, capsys):
    words = ['export', f'--workdir={tmp_path}', '--to=jax', f'--out={tmp_path}/out', '--runtime=x']
    assert cli.main(words) == 2
    assert '--runtime: is not for --to=jax; leave it out' in capsys.readouterr().err


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    """(the page of a small U-Net in a folder, its `Exportable`)."""
    pytest.importorskip('jax2onnx', reason="needs pip install 'fdistill[onnx]'")
    if not CHROMIUM:
        pytest.skip('needs chromium')
    try:
        page.parts(None)
    except UserError as error:
        pytest.skip(str(error))
    folder, exported = tmp_path_factory.mktemp('page'), model('ddpmpp')
    page.write(exported, folder)
    return folder, exported


def shown(browser):
    """The picture that the page shows, uint8 [H, W, 3]."""
    _, data = browser.value("document.getElementById('picture').src").split(',')
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert('RGB'))


@pytest.mark.slow
def test_page_shows_what_sample_draws(written, tmp_path):
    """In a real browser, which asks for nothing but the page; the pictures are kept beside it."""
    folder, exported = written
    browser = Browser(tmp_path)
    try:
        browser.open((folder / page.FILE).as_uri() + '#seed=3&count=16&label=random')
        browser.until("document.getElementById('picture').src")
        samples = exported.run.sample(*exported.run.start(jax.random.key(3), 16))
        assert _differ(shown(browser), samples) <= 1
        browser.screenshot(folder / 'page.png')
        # A class, then the other end of the walk.
        for name, value, said, given in (
            ('label', 7, 'seed 3', (jax.random.key(3), 16, 7)),
            ('mix', 1, '100 % of the way', (jax.random.key(1), 16, 7)),
        ):
            event = "new Event('input', {bubbles: true})"
            at = f"document.getElementById('{name}')"
            browser.value("document.getElementById('status').textContent = ''")
            browser.value(f'({at}.value = {value}, {at}.dispatchEvent({event}))')
            browser.until(f"document.getElementById('status').textContent.includes('{said}')")
            assert _differ(shown(browser), exported.run.sample(*exported.run.start(*given))) <= 1
        assert browser.value('location.hash').endswith('label=7')
        own = ('file:', 'blob:', 'data:')
        assert all(address.startswith(own) for address in browser.requests), browser.requests
        assert browser.requests and not browser.messages
    finally:
        browser.close()


def _differ(picture, samples):
    """By how many levels at most; the rounding of a number may go either way."""
    expected = pictures.image_grid(np.asarray(samples)).astype(int)
    return np.abs(picture.astype(int) - expected).max()


@pytest.mark.slow
def test_page_fits_a_phone(written, tmp_path):
    folder, _ = written
    browser = Browser(tmp_path, size=(360, 740), scale=2)
    try:
        browser.open((folder / page.FILE).as_uri())
        browser.until("document.getElementById('picture').src")
        assert browser.value('document.documentElement.scrollWidth') <= 360
        browser.screenshot(folder / 'phone.png', whole=True)
        # Whoever sees nothing hears what each control is.
        tree = browser.ask('Accessibility.getFullAXTree')['nodes']
        roles = ('spinbutton', 'combobox', 'slider', 'button', 'image')
        named = [
            (node['role']['value'], node['name']['value'])
            for node in tree
            if node.get('role', {}).get('value') in roles
        ]
        assert {role for role, _ in named} == set(roles) and all(name for _, name in named), named
    finally:
        browser.close()

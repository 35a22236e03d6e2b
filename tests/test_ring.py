"""The ring of eight modes, by every divergence, SIM and Uni-Instruct, as a user runs it: one
process each, through the command line."""

import json
import os
import resource
import subprocess
import sys

import pytest

from fdistill.divergences import DIVERGENCES

CONFIGS = [
    *(f'configs/ring.py:{name}' for name in DIVERGENCES),
    'configs/ring.py:alpha(0.5)',
    'configs/ring_sim.py',
    'configs/ring_uni_instruct.py',
    'configs/ring_uni_instruct.py:forward_kl',
]


@pytest.mark.slow
@pytest.mark.parametrize('config', CONFIGS)
def test_every_mode_is_found(config, tmp_path):
    """8 modes, histogram KL <= .01, high-quality share >= .85, within 40 CPU-seconds including
    compilation."""
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ('XLA_FLAGS', 'JAX_COMPILATION_CACHE_DIR')
    }

    def run(*words):
        command = [sys.executable, '-m', 'fdistill', *words, f'--workdir={tmp_path}']
        return subprocess.run(
            command, env=environment, check=True, capture_output=True, text=True
        ).stdout

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run('train', f'--config={config}')
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    row = json.loads(run('evaluate', '--quiet'))
    shown = {
        key: round(row[key], 4) for key in ('modes', 'kl', 'high_quality', 'within', 'pixel_fd')
    }
    print(f'\n{config.split("/")[1]} {shown} {seconds:.0f} CPU-s')
    assert row['modes'] == 8
    assert row['kl'] <= 0.01
    assert row['high_quality'] >= 0.85
    assert seconds <= 40

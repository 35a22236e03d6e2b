"""Makes a reference log of `fdistill doctor` of a run of our own.

    fdistill train --config=configs/ring.py:js --workdir=runs/ring-js
    python experiments/reference_log.py configs/ring.py:js runs/ring-js

Writes fdistill/report/reference/ring-js.jsonl: what was run, and the run's metrics.jsonl.
"""

import argparse
import json
import pathlib
import time

from fdistill import config as configs
from fdistill.files import disk
from fdistill.report import doctor


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('config', help='as given to `fdistill train`')
    parser.add_argument('workdir', type=pathlib.Path, help='folder of the run, complete')
    given = parser.parse_args()
    config, log = configs.to_json(configs.read(given.workdir)), given.workdir / 'metrics.jsonl'
    method = config['method']
    header = doctor.Header(
        config=given.config,
        method={key: method[key] for key in ('name', 'divergence') if key in method},
        data=doctor.data_of(config),
        seed=config['seed'],
        versions=disk.versions(),
        date=time.strftime('%Y-%m-%d', time.gmtime(log.stat().st_mtime)),
    )
    path = doctor.REFERENCES / f'{given.workdir.name}.jsonl'
    disk.write_bytes(path, (json.dumps(header) + '\n').encode() + log.read_bytes())
    print(path)


if __name__ == '__main__':
    main()

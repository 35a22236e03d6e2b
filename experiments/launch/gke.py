"""Trains on TPUs of a GKE cluster: prints a JobSet, and applies it.

    python experiments/launch/gke.py --image=REGISTRY/fdistill --topology=v5e:4x4 [--slices=1] \\
        [--dry-run] -- train --config=configs/imagenet64_sim.py --workdir=gs://BUCKET/sim

What follows `--` is a command line of `fdistill`, which the image has installed. Each host of a
slice is a pod of an indexed job; JAX finds the others by GKE's variables. A pod that is evicted
gets SIGTERM, and 120 seconds to save; the JobSet starts all of them again, which go on from the
newest checkpoint, at most --restarts times.
"""

import argparse
import json
import math
import subprocess
import sys

# name: (accelerator label of GKE, chips of a host where the slice has several hosts), from GKE's
# documentation of TPU node pools. A slice of one host has all its chips there.
TPUS = {
    'v4': ('tpu-v4-podslice', 4),
    'v5e': ('tpu-v5-lite-podslice', 4),
    'v5p': ('tpu-v5p-slice', 4),
    'v6e': ('tpu-v6e-slice', 4),
}
SINGLE_HOST = {'v5e': 8, 'v6e': 8}


def parse(words):
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0], allow_abbrev=False)
    parser.add_argument('--image', required=True, help='container image with fdistill in it')
    parser.add_argument('--topology', required=True, help='as v5e:4x4 or v5p:4x4x4')
    parser.add_argument('--slices', type=int, default=1, help='default: %(default)s')
    parser.add_argument('--name', default='fdistill', help='of the JobSet; default: %(default)s')
    parser.add_argument('--restarts', type=int, default=100, help='default: %(default)s')
    parser.add_argument('--dry-run', action='store_true', help='print it, apply nothing')
    parser.add_argument('command', nargs='+', help='of fdistill, after --')
    options = parser.parse_args(words)
    for name, least in (('slices', 1), ('restarts', 0)):
        if getattr(options, name) < least:
            parser.error(f'--{name}={getattr(options, name)}: need at least {least}')
    kind, _, shape = options.topology.partition(':')
    if kind not in TPUS or not all(size.isdecimal() and int(size) for size in shape.split('x')):
        parser.error(f'--topology={options.topology}: must be as v5e:4x4; known: {", ".join(TPUS)}')
    return options


def jobset(options):
    """The JobSet as JSON, which is YAML too."""
    kind, _, shape = options.topology.partition(':')
    accelerator, chips = TPUS[kind]
    total = math.prod(map(int, shape.split('x')))
    if total <= SINGLE_HOST.get(kind, chips):
        chips = total
    hosts = total // chips
    command = ['fdistill', *options.command]
    if hosts * options.slices > 1 and '--distributed' not in command:
        command.append('--distributed')
    container = {
        'name': 'fdistill',
        'image': options.image,
        'command': command,
        'ports': [{'containerPort': 8471}, {'containerPort': 8080}],
        'resources': {'limits': {'google.com/tpu': chips}, 'requests': {'google.com/tpu': chips}},
    }
    pod = {
        'restartPolicy': 'Never',
        'terminationGracePeriodSeconds': 120,
        'nodeSelector': {
            'cloud.google.com/gke-tpu-accelerator': accelerator,
            'cloud.google.com/gke-tpu-topology': shape,
        },
        'containers': [container],
    }
    job = {
        'parallelism': hosts,
        'completions': hosts,
        'backoffLimit': 0,
        'completionMode': 'Indexed',
        'template': {'spec': pod},
    }
    replicas = {'name': 'slice', 'replicas': options.slices, 'template': {'spec': job}}
    return {
        'apiVersion': 'jobset.x-k8s.io/v1alpha2',
        'kind': 'JobSet',
        'metadata': {
            'name': options.name,
            'annotations': {
                'alpha.jobset.sigs.k8s.io/exclusive-topology': 'cloud.google.com/gke-nodepool'
            },
        },
        'spec': {
            'failurePolicy': {'maxRestarts': options.restarts},
            'replicatedJobs': [replicas],
        },
    }


def main(words=None):
    options = parse(words)
    text = json.dumps(jobset(options), indent=2) + '\n'
    if options.dry_run:
        print(text, end='')
        return 0
    try:
        return subprocess.run(['kubectl', 'apply', '-f', '-'], input=text, text=True).returncode
    except FileNotFoundError:
        print('kubectl is not on PATH: install it, or --dry-run', file=sys.stderr)
        return 2


if __name__ == '__main__':
    sys.exit(main())

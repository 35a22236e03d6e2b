"""Pairs that no teacher made."""

from fdistill.data import pairs


def write(folder, x0, labels=None, **more):
    """A folder of pairs of the samples x0, of the seed 3, and of these labels."""
    dtype = str(x0.dtype)
    record = [{'name': 'x0', 'dtype': dtype, 'shape': list(x0.shape[1:])}]
    arrays = {'x0': x0}
    if labels is not None:
        record.append({'name': 'label', 'dtype': 'int32', 'shape': []})
        arrays['label'] = labels
    note = {
        'format': pairs.FORMAT,
        'name': 'toy',
        'data': {'name': 'digits'},
        'num_classes': 1 if labels is None else int(labels.max()) + 1,
        'record': record,
        'seed': 3,
        'count': len(x0),
        'levels': pairs.DTYPES[dtype],
        'batch_size': 8,
        'sampling': {'evaluations': 1},
        'teacher': '',
        'trained_on': [],
        'versions': {},
    } | more
    for k in range(pairs.shards(note)):
        part = slice(*pairs.bounds(note, k))
        pairs.write_shard(folder, note, k, {name: value[part] for name, value in arrays.items()})
    pairs.finish(folder, note)
    return folder

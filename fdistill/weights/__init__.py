"""Published weights: read from foreign files without running them, converted once, kept as
safetensors."""

import pathlib
from typing import Any, Callable, NamedTuple

from fdistill.errors import UserError, pick
from fdistill.files import disk
from fdistill.networks import inception as inception_network
from fdistill.networks import vit
from fdistill.weights import inception, reader, store


class Converter(NamedTuple):
    """How the arrays of one network are found in foreign files.

    rename({foreign name: array}) -> {our name: array}; a name that it does not know stays as it is.
    shapes() -> {our name: shape}, all float32 and all there must be.
    licence: what to know before using them.
    """

    rename: Callable[..., Any]
    shapes: Callable[..., Any]
    licence: str


CONVERTERS = {
    'inception': Converter(inception.rename, inception_network.shapes, inception.LICENCE),
    # Our names are facebook's.
    'dinov2': Converter(
        dict,
        lambda: vit.vit().shapes(),
        'DINOv2 ViT-L/14 of Meta AI, dinov2_vitl14_pretrain.pth, Apache-2.0 (code and weights)',
    ),
}


def convert(kind, source, out):
    """Writes the weights of a published file as ours; a file that holds them already stays as it
    is.

    Args:
      kind: a name of CONVERTERS.
      source: a file that `reader.read` reads.
      out: the safetensors file; its folder is made when missing.

    Returns:
      The metadata of the written file, {str: str}.

    Raises:
      UserError: unknown kind, unreadable source, its arrays are not those of the network, or `out`
        holds something else.
    """
    converter = pick(CONVERTERS, kind, 'weights')
    source, out = pathlib.Path(source), disk.file_for(out, 'OUT')
    arrays = reader.flatten(reader.read(source))
    renamed = converter.rename(arrays)
    try:
        store.check(renamed, converter.shapes())
    except ValueError as error:
        raise UserError(
            f'{source}: does not hold the weights {kind!r}: {error}; take the file as it was published'
        ) from error
    if out.exists():
        _, metadata = store.load(out)
        if (metadata.get('kind'), metadata['content_sha256']) != (kind, store.digest(renamed)):
            raise UserError(
                f'{out}: exists and holds other weights; delete it or choose another name'
            )
        return metadata
    metadata = {
        'kind': kind,
        'source': source.name,
        'source_sha256': disk.sha256(source),
        'licence': converter.licence,
    }
    store.save(out, renamed, metadata)
    return store.load(out, converter.shapes())[1]

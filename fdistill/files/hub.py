"""To and from a model hub, by its official client; nothing is sent or fetched unless it is asked
for."""

import pathlib
import re

from fdistill.errors import UserError
from fdistill.files import disk

_NAME = re.compile(r'[\w-][\w.-]*/[\w-][\w.-]*')
# Such names are of files that are not there.
_FILES = ('.pkl', '.pt', '.pth', '.ckpt', '.bin', '.safetensors', '.npz', '.zip')
# Of a model, what is data: no pickles, nor code.
_WANTED = ['*.json', '*.safetensors', 'README.md']


def _client(asked):
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            f"{asked}: the hub's client is not installed: pip install 'fdistill[hub]'"
        ) from error
    return huggingface_hub


def _said(error):
    """What the client says against it, in a few words."""
    return str(error).strip().split('\n')[0][:300]


def is_name(source: disk.Path) -> bool:
    """Whether it is OWNER/NAME or OWNER/NAME@REVISION of a model, and no file or folder here."""
    path, (name, _, revision) = pathlib.Path(source), str(source).partition('@')
    named = _NAME.fullmatch(name) and re.fullmatch(r'[\w.-]*', revision)
    return bool(named) and path.suffix not in _FILES and not path.exists()


def fetch(source: str, folder: pathlib.Path) -> pathlib.Path:
    """Fetches a model's configs and weights; its folder, below `folder`. What is there already is
    not fetched again.

    Args:
      source: OWNER/NAME, or OWNER/NAME@REVISION, a commit, tag or branch.
      folder: that models are kept in.

    Raises:
      UserError: there is no client or no network, or the hub says no.
    """
    name, _, revision = source.partition('@')
    hub = _client(f'{source}: is no file or folder here, and for a model hub')
    place = folder / source.replace('/', '--')
    try:
        # As files, not as the links of a cache, which lead out of the folder.
        hub.snapshot_download(
            name, revision=revision or None, allow_patterns=_WANTED, local_dir=place
        )
    except Exception as error:  # Also of what the client sends requests by.
        raise UserError(
            f'{source}: is no file or folder here, and the hub does not give it ({_said(error)}); '
            'name a file or folder, or mend name or network'
        ) from error
    return place


def check(name: str) -> None:
    """Raises UserError where a folder could not be uploaded as OWNER/NAME."""
    if not _NAME.fullmatch(name):
        raise UserError(f'--push={name}: give OWNER/NAME')
    if not _client(f'--push={name}').get_token():
        raise UserError(
            f'--push={name}: this machine is not logged in at the hub; run `hf auth login` or set '
            'HF_TOKEN'
        )


def push(folder: pathlib.Path, name: str) -> str:
    """Uploads a folder to the model OWNER/NAME, which is made, private, where there is none; its
    address.

    Raises:
      UserError: the hub says no.
    """
    hub = _client(f'--push={name}').HfApi()
    try:
        hub.create_repo(name, exist_ok=True, private=True)
        hub.upload_folder(repo_id=name, folder_path=folder)
    except Exception as error:  # Also of what the client sends requests by.
        raise UserError(
            f'--push={name}: {_said(error)}; {folder} is written all the same'
        ) from error
    return f'{hub.endpoint}/{name}'

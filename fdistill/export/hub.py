"""Uploads to a model hub, by its official client; nothing is sent unless it is asked for."""

import pathlib
import re

from fdistill.errors import UserError


def check(name: str) -> None:
    """Raises UserError where a folder could not be uploaded as OWNER/NAME."""
    if not re.fullmatch(r'[\w.-]+/[\w.-]+', name):
        raise UserError(f'--push={name}: give OWNER/NAME')
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            f"--push={name}: the hub's client is not installed: pip install 'fdistill[push]'"
        ) from error
    if not huggingface_hub.get_token():
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
    import huggingface_hub

    hub = huggingface_hub.HfApi()
    try:
        hub.create_repo(name, exist_ok=True, private=True)
        hub.upload_folder(repo_id=name, folder_path=folder)
    except OSError as error:  # The client's own errors are of requests.
        said = str(error).strip().split('\n')[0][:300]
        raise UserError(f'--push={name}: {said}; {folder} is written all the same') from error
    return f'{hub.endpoint}/{name}'

"""Uploading an exported model to a hub (huggingface_hub). Private unless asked otherwise, and never with a secret."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

from shardyard.errors import ModelError, UsageError
from shardyard.redaction import holds_secret, scrub

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Text in which a person or a library may have left a secret. A vocabulary has strings of any form.
_CHECKED = (".md", ".txt", ".jinja", ".yaml")
_CHECKED_JSON = re.compile(r"(.*config|modules)\.json")
_HINTS = {
    401: "the hub does not know this token; set HF_TOKEN to one that may write, or run `hf auth login`",
    403: "the token in HF_TOKEN may not write there; use one with write access to this organisation",
    404: "there is no such repository, or the token may not see it; check the name and HF_TOKEN",
}


@dataclass(frozen=True)
class Upload:
    """What a push sends: files with their sizes in bytes, to a repository of the hub."""

    repository: str
    files: dict[str, int]
    private: bool

    @property
    def num_bytes(self) -> int:
        """The size of all files."""
        return sum(self.files.values())


def planned_upload(folder: Path, repository: str, *, private: bool = True) -> Upload:
    """The files of an exported model, checked before anything is sent.

    Raises:
        UsageError: the name is no `org/name`.
        ModelError: the folder holds no model, or a file that seems to hold a secret.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise UsageError(f"{repository!r} is no repository of a hub; give one as org/name.")
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and not _hidden(path, folder)]
    if not any(path.suffix == ".safetensors" for path in paths):
        raise ModelError(f"{folder} holds no model; `shardyard export RUN` writes one.")
    for path in paths:
        if _is_checked(path) and holds_secret(path.read_text(encoding="utf-8", errors="replace")):
            raise ModelError(
                f"{path} seems to hold a secret (a token, a key or a login), so nothing was sent; remove it from the "
                "file, and from the recipe it came from, and push again."
            )
    return Upload(repository, {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}, private)


def push(folder: Path, upload: Upload, *, message: str, revision: str | None = None) -> str:
    """Create the repository if it does not exist, and send all files in one commit; returns the commit's address.

    The token is that of huggingface_hub: HF_TOKEN, or a login.

    Args:
        revision: branch to commit to, which is created if it does not exist; by default the main one.

    Raises:
        ModelError: the hub cannot be reached or refuses.
    """
    api = HfApi(library_name="shardyard")
    repository = upload.repository

    def send() -> str:
        api.create_repo(repository, private=upload.private, exist_ok=True)
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        sent = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=list(upload.files),
            commit_message=message,
            revision=revision,
        )
        return str(sent.commit_url)

    return _told(send, repository, api.endpoint)


def _told(send: Callable[[], str], repository: str, endpoint: str) -> str:
    try:
        return send()
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        said = error.server_message or str(error).strip().splitlines()[0]
        hint = _HINTS.get(status, "try again later") if isinstance(status, int) else "try again later"
        raise ModelError(
            f"{endpoint} refuses to store {repository} ({status}: {scrub(said).rstrip('.')}): {hint}."
        ) from error
    except HFValidationError as error:
        raise UsageError(f"{repository!r} is no repository of a hub: {error}") from error
    except (httpx.HTTPError, OSError, ValueError) as error:
        reason = scrub((str(error).strip().splitlines() or [type(error).__name__])[0]).rstrip(".")
        raise ModelError(
            f"{repository} could not be sent to {endpoint}: {reason}. Check the connection (HF_ENDPOINT names another "
            "hub) and push again; files that arrived are not sent twice."
        ) from error


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _is_checked(path: Path) -> bool:
    return path.suffix in _CHECKED or bool(_CHECKED_JSON.fullmatch(path.name))

"""Sending a model to a hub: private, whole, in one commit, and never with a secret."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardyard.errors import ModelError, UsageError
from shardyard.models.export.hub import planned_upload
from support.export.hub import TOKEN, Hub, hub
from support.secrets import SECRETS

CARD = "---\nlicense: mit\n---\n\n# A model\n"
# huggingface_hub reads its address when it is imported, so each push is a process of its own.
PUSH = """import sys
from pathlib import Path
from shardyard.models.export.hub import planned_upload, push
folder, repository, revision, visible = sys.argv[1:]
upload = planned_upload(Path(folder), repository, private=not visible)
print(push(Path(folder), upload, message="tiny-1, trained with Shardyard", revision=revision or None))
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "final"
    folder.mkdir()
    (folder / "README.md").write_text(CARD)
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    (folder / "tokenizer.json").write_text('{"vocab": {"api_key=abcdef0123456789": 1}}')
    (folder / "model.safetensors").write_bytes(b"\x08" + b"\0" * 2000)
    (folder / ".cache").mkdir()
    (folder / ".cache" / "junk").write_text("not part of the model")
    return folder


@pytest.fixture
def server() -> Iterator[Hub]:
    with hub() as found:
        yield found


def pushed(
    server: Hub, model: Path, *, token: str = TOKEN, repository: str = "org/tiny", revision: str = "", visible: str = ""
) -> subprocess.CompletedProcess[str]:
    variables = {"HF_ENDPOINT": server.url, "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(model.parent)}
    arguments = [str(model), repository, revision, visible]
    return subprocess.run(
        [sys.executable, "-c", PUSH, *arguments],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_model_arrives_whole_in_one_commit_of_a_private_repository(server: Hub, model: Path) -> None:
    done = pushed(server, model)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{server.url}/org/tiny/commit/{'1' * 40}"
    repository = server.repositories["org/tiny"]
    assert repository.private
    assert repository.message == "tiny-1, trained with Shardyard"
    names = ("README.md", "config.json", "model.safetensors", "tokenizer.json")
    assert repository.files == {name: (model / name).read_bytes() for name in names}
    assert repository.branches == {"main": 1}
    assert "POST /api/validate-yaml" in server.requests, "the hub reads the card's metadata"
    again = pushed(server, model, revision="step-20")
    assert again.returncode == 0, again.stderr
    assert repository.branches == {"main": 1, "step-20": 1}
    done = pushed(server, model, repository="org/open", visible="public")
    assert done.returncode == 0, done.stderr
    assert not server.repositories["org/open"].private


@pytest.mark.slow
def test_a_refusal_says_what_to_do(server: Hub, model: Path) -> None:
    done = pushed(server, model, token="hf_" + "anotherToken00000000")
    assert done.returncode != 0
    assert f"{server.url} refuses to store org/tiny (401: Invalid username or password)" in done.stderr
    assert "set HF_TOKEN to one that may write" in done.stderr
    assert "anotherToken" not in done.stderr.rpartition("ModelError")[2]
    assert server.repositories == {}


def test_what_would_be_sent_is_known_before(model: Path) -> None:
    upload = planned_upload(model, "org/tiny")
    assert list(upload.files) == ["README.md", "config.json", "model.safetensors", "tokenizer.json"]
    assert upload.num_bytes == sum((model / name).stat().st_size for name in upload.files)
    assert upload.private


@pytest.mark.parametrize("name", ["README.md", "config.json", "adapter_config.json", "chat_template.jinja"])
@pytest.mark.parametrize("kind", ["hugging face", "aws id", "github"])
def test_a_file_with_a_secret_is_not_sent(model: Path, name: str, kind: str) -> None:
    (model / name).write_text(f"note: {SECRETS[kind]}")
    with pytest.raises(ModelError, match=rf"{name} seems to hold a secret .* nothing was sent") as caught:
        planned_upload(model, "org/tiny")
    assert SECRETS[kind] not in str(caught.value)


@pytest.mark.parametrize("name", ["tiny", "org/", "org/a/b", "https://hub/org/a", "../x"])
def test_a_repository_has_an_owner(model: Path, name: str) -> None:
    with pytest.raises(UsageError, match="is no repository of a hub; give one as org/name"):
        planned_upload(model, name)


def test_a_folder_without_weights_is_no_model(model: Path) -> None:
    (model / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"holds no model; `shardyard export RUN` writes one"):
        planned_upload(model, "org/tiny")

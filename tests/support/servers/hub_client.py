"""A process that reads sources through a hub: HF_ENDPOINT is read when huggingface_hub is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PLATFORM = Path(__file__).parents[3] / "platform"
TESTS = Path(__file__).parents[2]


class Client:
    """Answers requests, one a line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def read(self, path: str, *, objective: str = "causal_lm", seconds: float = 20.0, **more: Any) -> dict[str, Any]:
        """The rows of a source, or the error; `retries` counts requests that were repeated.

        Args:
            more: `token`, `streams`, `resume_at` (rows after which a new process goes on), `split`, and fields of the
                source.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        asked = {"path": path, "objective": objective, "seconds": seconds, **more}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the client ended"
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def client(endpoint: str, home: Path) -> Iterator[Client]:
    """A client of the hub at an endpoint, without a token."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "PYTHONPATH": f"{PLATFORM}{os.pathsep}{TESTS}"}
    command = [sys.executable, "-m", "support.servers.hub_client"]
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield Client(process)
    finally:
        process.kill()
        process.wait()


def _main() -> None:
    import numpy as np

    from shardyard.data.media.audio import read_audio
    from shardyard.data.media.images import decoded
    from shardyard.data.sources import retry as retries
    from shardyard.data.sources import web
    from shardyard.data.sources.sources import open_for
    from shardyard.data.stream.reader import START, ShareReader, share_of, with_shards
    from shardyard.errors import ShardyardError
    from shardyard.objectives.registry import objective_spec
    from shardyard.recipe.schema import Source

    retries.FIRST_SECONDS, retries.LONGEST_SECONDS, web.UNREACHED_SECONDS = 0.001, 0.02, 0.5

    def shown(role: str, value: Any) -> Any:
        if role == "image":
            return int(np.asarray(decoded(value, "L")).mean())
        return len(read_audio(value)) if role == "audio" else value

    def read(asked: dict[str, Any]) -> dict[str, Any]:
        spec, streams = objective_spec(asked.pop("objective")), asked.pop("streams", 1)
        resume, token = asked.pop("resume_at", None), asked.pop("token", None)
        os.environ.pop("HF_TOKEN", None)
        os.environ.update({"HF_TOKEN": token} if token else {})
        before, retry = web.WEB.count, retries.Retry(asked.pop("seconds"))
        training = asked.pop("training", True)
        opened = open_for(spec, Source(**asked), training=training, retry=retry)
        opened = with_shards(opened, streams, retry)
        rows: list[Any] = []
        for stream in range(streams):
            reader = ShareReader(share_of(opened, stream, streams), retry)
            reader.seek(START)
            if resume is not None:
                rows += reader.read(resume)
                cursor = reader.cursor()
                reader.close()
                reader = ShareReader(share_of(opened, stream, streams), retry)
                reader.seek(cursor)
            rows += reader.read(10**6)
            left_out = reader.left_out.named
            reader.close()
        found = [
            {role: shown(role, value) for role, value in row.items()} if isinstance(row, dict) else row for row in rows
        ]
        print_ = {"rows": found, "columns": dict(opened.columns), "fingerprint": dict(opened.fingerprint)}
        return {**print_, "retries": web.WEB.count - before, "left_out": left_out}

    for line in sys.stdin:
        try:
            answer = read(json.loads(line))
        except ShardyardError as error:
            answer = {"error": str(error), "kind": type(error).__name__}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main()

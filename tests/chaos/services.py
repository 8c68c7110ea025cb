"""Faults of what a run talks to: W&B and data servers; and runs that go on elsewhere."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from chaos.cell import Cell, Outcome, Where, finish, outcome
from chaos.trial import EVERY, STEPS, Measured, Trial, trial

TESTS = Path(__file__).parents[1]
# Answers each request as a W&B that does not know the key.
REFUSING = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(401); self.send_header("Content-Length", "0"); self.end_headers()
    do_GET = do_POST = do_PUT = do_HEAD = answer
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", 8123), Handler).serve_forever()
"""
# Serves the corpus as Parquet and fails a fifth of all requests, in every way that the server of the tests knows.
STUMBLING = """
import sys, time
from pathlib import Path
from support.servers.stumbling import Server
server = Server({"corpus.parquet": Path(sys.argv[1]).read_bytes()}, seed=int(sys.argv[2]))
server.faults, server.kinds = 0.2, ("404", "500", "502", "503", "429", "drop", "cut")
print(server.server_address[1], flush=True)
server.serve_forever()
"""


@contextmanager
def serving(one: Trial, program: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A program of Python in the box, ended with the block."""
    process = subprocess.Popen(
        [*one.box.prefix, sys.executable, "-c", program, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(TESTS), "PATH": "/usr/bin:/bin"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _black_hole(one: Trial) -> str:
    """An address in the box that swallows everything that is sent to it."""
    for command in (
        "ip link add v0 type veth peer name v1",
        "ip addr add 10.9.0.1/24 dev v0",
        "ip link set v0 up",
        "ip link set v1 up",
        "ip neigh add 10.9.0.9 lladdr 02:00:00:00:00:09 dev v0 nud permanent",
    ):
        done = one.box.run(*command.split())
        assert done.returncode == 0, done.stderr
    return "http://10.9.0.9:8123"


def _wandb(how: str, where: Where) -> Outcome:
    """W&B is asked for, and not to be had: training must not notice."""
    reference = where.reference()
    with trial(where.cell, tracking={"wandb": {"mode": "online"}}) as one, contextlib.ExitStack() as stack:
        url = "http://127.0.0.1:8123"
        if how == "refuses":
            stack.enter_context(serving(one, REFUSING))
        elif how == "black hole":
            url = _black_hole(one)
        one.variables = {"WANDB_BASE_URL": url, "WANDB_API_KEY": "0" * 40}
        code = one.run("launch", one.recipe)
        stack.close()
        said = [line for line in one.output[-1].splitlines() if "W&B" in line]
        found = outcome(one, finish(one, code), reference, Measured())
        return Outcome(
            **{**vars(found), "told": said[0][:160] if said else "no word", "good": found.good and bool(said)}
        )


def _worlds(parts: list[tuple[int, int]], where: Where) -> Outcome:
    """A run that goes on at other world sizes and ZeRO stages: the same rows, losses within 1e-4."""
    same = {"train": {"global_batch": 12, "precision": "fp32"}, "model": {"dropout": 0.0}, "data": {"streams": 12}}
    reference = where.reference(**same)
    with trial(where.cell, **same) as one:
        code = 1
        for number, (workers, stage) in enumerate(parts):
            last = number == len(parts) - 1
            until = () if last else ("--until", (number + 1) * STEPS // len(parts) // EVERY * EVERY)
            settings = ("-s", f"cluster.workers={workers}", "-s", f"zero.stage={stage}")
            what = ("resume", "latest") if number else ("launch", one.recipe)
            code = one.run(*what, *settings, *until)
            if code != 0:
                break
        differs = one.state().differs(reference, tolerance=1e-4) if code == 0 else one.output[-1][-300:]
        left = one.box.settled()
        return Outcome(
            "by `resume -s`", differs or "rows equal, losses within 1e-4", left=left, good=not differs and not left
        )


def _http(where: Where) -> Outcome:
    """Five runs that read Parquet from a server that fails a fifth of all requests."""
    survived, problems = 0, []
    with trial(where.cell) as one:
        corpus = next(one.box.folder.glob("*.jsonl"))
        rows = [json.loads(line) for line in corpus.read_text().splitlines()]
        path = one.box.folder / "corpus.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=40)
        plain = ("-s", f"data.train=[{{path: {path}, holdout: 0.1}}]")
        assert one.run("launch", one.recipe, *plain) == 0, one.output[-1]
        reference = one.state()
        for seed in range(5):
            for old in (*(one.box.folder / "runs").iterdir(), *(one.box.folder / "log").iterdir()):
                subprocess.run(["rm", "-rf", old], check=True)
            with serving(one, STUMBLING, path, seed) as server:
                assert server.stdout is not None
                port = server.stdout.readline().strip()
                source = f"data.train=[{{path: 'http://127.0.0.1:{port}/corpus.parquet', holdout: 0.1}}]"
                code = one.run("launch", one.recipe, "-s", source)
            differs = one.state().differs(reference) if code == 0 else one.output[-1][-200:]
            survived += not differs
            problems += [differs] if differs else []
        left = one.box.settled()
    state = "bitwise" if not problems else problems[0]
    return Outcome(f"by itself, {survived} of 5", state, left=left, good=survived == 5 and not left)


def cells() -> list[Cell]:
    """All of them."""
    wandb = {
        "closed": "a closed port",
        "black hole": "an address that swallows packets",
        "refuses": "a server that answers 401",
    }
    moves = {
        "world": [(4, 1), (2, 1), (3, 1)],
        "stage": [(2, 1), (2, 2), (2, 3)],
        "stage-back": [(2, 3), (2, 2), (2, 1)],
        "both": [(4, 3), (2, 1), (3, 3)],
    }
    return [
        *(
            Cell(f"wandb-{how.replace(' ', '-')}", "services", f"W&B: {text}", "WANDB_BASE_URL", partial(_wandb, how))
            for how, text in wandb.items()
        ),
        Cell(
            "http",
            "services",
            "HTTP faults at 20 %",
            "Parquet from a server that answers 404, 429, 5xx, resets, or half a file",
            _http,
        ),
        *(
            Cell(
                f"elsewhere-{name}",
                "runs that go on elsewhere",
                " → ".join(f"{workers} ranks at stage {stage}" for workers, stage in parts),
                f"`--until` at {EVERY} and {2 * EVERY}, then `resume -s cluster.workers=… -s zero.stage=…`",
                partial(_worlds, parts),
            )
            for name, parts in moves.items()
        ),
    ]

"""`shardyard dashboard`: the web page of runs and jobs, served on this machine only by default."""

from __future__ import annotations

import contextlib
import html
import os
import socket
import sys
import tempfile
import threading
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from shardyard.cli.options import RunsDir
from shardyard.cli.view import output
from shardyard.dashboard.web.addresses import bound, checked_names, hosts_of, is_loopback, urls
from shardyard.dashboard.web.security import Gate, new_token, token_in
from shardyard.errors import UsageError
from shardyard.extras import require
from shardyard.tracking.run.folder import runs_folder


def dashboard(
    runs_dir: RunsDir = None,
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Address of this machine to listen to.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", metavar="PORT", min=0, max=65535, help="Port; 0 takes any free one.")
    ] = 8270,
    address: Annotated[
        str | None,
        typer.Option("--address", metavar="URL", help="Ray cluster, http://HEAD:8265. Default: as for `ps`."),
    ] = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Do not open a browser.")] = False,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", metavar="FILE", help="File with the token; created if missing.")
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", metavar="NAME", help="Additional host name to answer to; repeatable."),
    ] = None,
    data_dir: Annotated[
        list[Path] | None,
        typer.Option("--data-dir", metavar="DIR", help="Folder whose documents may be shown; repeatable."),
    ] = None,
) -> None:
    """Show runs, curves, logs and jobs in the browser."""
    require("dashboard", "the dashboard", "starlette", "uvicorn", "plotly")
    from shardyard.dashboard.index.index import Index, check_folder
    from shardyard.dashboard.web.server import make_app, serve

    folder = runs_folder(runs_dir)
    check_folder(folder)
    names = checked_names(allow_host or [])
    data_dirs = _checked_folders(data_dir or [])
    token = token_in(token_file.expanduser()) if token_file is not None else new_token()
    listening = bound(host, port)
    chosen = int(listening.getsockname()[1])
    try:
        index = Index(folder)
        gate = Gate(token, hosts_of(host, names), chosen, frozenset(names))
        app = make_app(index, gate, address, data_dirs)
    except BaseException:
        listening.close()
        raise
    places = urls(host, chosen)
    _print_addresses(places, folder, names, token_file, token)
    if not is_loopback(host):
        _warn(chosen)
    with contextlib.ExitStack() as ending:
        if not no_browser and output.is_terminal():
            # Of a server on all addresses, the browser opens the last one, which is local.
            _open_browser(ending.enter_context(entry_file(f"{places[-1]}?token={token}")))
        output.note("Ctrl-C ends it.")
        sys.stdout.flush()  # a process that reads the pipe waits for the address
        serve(app, listening)


def _print_addresses(places: list[str], folder: Path, names: list[str], token_file: Path | None, token: str) -> None:
    """Print the addresses. A token from a file is not shown; a new one is shown only to its user."""
    ending = "" if token_file is not None else f"?token={token}"
    for index, place in enumerate(places):
        output.line(f"{'dashboard' if index == 0 else '':12} {place}{ending}")
    absent = "" if folder.is_dir() else " (does not exist yet; the first launch creates it)"
    output.line(f"runs         {folder}{absent}")
    if names:
        output.note(f"It also answers to {', '.join(names)} (--allow-host).")
    if token_file is not None:
        output.note(f"The token is in {token_file}; open {places[0]}?token=… with it.")


def _warn(port: int) -> None:
    output.note(
        "Warning: others on the network can reach this page over plain HTTP. The token travels in clear text, and "
        "anyone who has it can start and stop jobs as you. It is safer to omit --host and to forward the port, `ssh -L "
        f"{port}:127.0.0.1:{port} {socket.gethostname()}`, or a proxy with TLS whose name --allow-host gives."
    )


def _checked_folders(folders: list[Path]) -> list[Path]:
    """The folders of --data-dir, absolute.

    Raises:
        UsageError: one is not a folder.
    """
    for folder in folders:
        if not folder.expanduser().is_dir():
            raise UsageError(f"--data-dir {folder} is not a folder.")
    return [folder.expanduser().resolve() for folder in folders]


@contextlib.contextmanager
def entry_file(address: str) -> Iterator[Path]:
    """A page, readable by this user only, that redirects a browser to an address; removed at the end.

    All users of a machine can see the command lines of its processes, so the browser gets this file, not the token.
    """
    with tempfile.TemporaryDirectory(prefix="shardyard-dashboard-") as folder:
        path = Path(folder) / "open.html"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(
                "<!doctype html><meta charset=utf-8><title>Shardyard</title>"
                f'<meta http-equiv="refresh" content="0;url={html.escape(address)}">'
            )
        yield path


def _open_browser(page: Path) -> None:
    """Open a browser in the background, if there is one."""
    threading.Timer(0.8, lambda: webbrowser.open(page.as_uri())).start()

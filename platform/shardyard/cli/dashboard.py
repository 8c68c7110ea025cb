"""`shardyard dashboard`: the page about runs and jobs, served to this machine alone unless asked otherwise."""

from __future__ import annotations

import ipaddress
import sys
from pathlib import Path
from typing import Annotated

import typer

from shardyard.cli import output
from shardyard.cli.options import RunsDir
from shardyard.extras import require
from shardyard.tracking.runfolder import runs_folder


def dashboard(
    runs_dir: RunsDir = None,
    host: Annotated[str, typer.Option("--host", help="Address of this machine to listen to.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 takes any free one.")] = 8270,
    address: Annotated[
        str | None,
        typer.Option("--address", metavar="URL", help="Ray cluster, http://HEAD:8265; by default as for `ps`."),
    ] = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Open no browser.")] = False,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help="File that holds the token; made where it is missing.")
    ] = None,
) -> None:
    """Show runs, curves, logs and jobs in the browser."""
    require("dashboard", "the dashboard", "starlette", "uvicorn", "plotly")
    from shardyard.dashboard.index import Index, check_folder
    from shardyard.dashboard.security import Gate, new_token, token_in
    from shardyard.dashboard.server import bound, hosts_of, make_app, serve

    folder = runs_folder(runs_dir)
    check_folder(folder)
    token = token_in(token_file.expanduser()) if token_file is not None else new_token()
    listening = bound(host, port)
    chosen = int(listening.getsockname()[1])
    try:
        index = Index(folder)
        app = make_app(index, Gate(token, hosts_of(host), chosen), address)
    except BaseException:
        listening.close()
        raise
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    place = f"http://{f'[{shown}]' if ':' in shown else shown}:{chosen}/"
    full = f"{place}?token={token}"
    # Where a file keeps the token, it stands nowhere else; one that was made for this run is told to its person alone.
    output.line(f"dashboard    {place if token_file is not None else full}")
    absent = "" if folder.is_dir() else " (is not there yet; a launch into it makes it)"
    output.line(f"runs         {folder}{absent}")
    if token_file is not None:
        output.note(f"The token is in {token_file}; open {place}?token=… with it.")
    if not _is_loopback(host):
        output.note("Others on the network can reach this page, unencrypted; `ssh -L` to a loopback address is safer.")
    if not no_browser and output.is_terminal():
        _open_browser(full)
    output.note("Ctrl-C ends it.")
    sys.stdout.flush()  # whoever started this with a pipe waits for the address
    serve(app, listening)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _open_browser(address: str) -> None:
    """In the background; a machine without one is left alone."""
    import threading
    import webbrowser

    threading.Timer(0.8, lambda: webbrowser.open(address)).start()

"""The files of the page: scripts, styles, and plotly from its installed package."""

from __future__ import annotations

import functools
import importlib.resources
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response

from shardyard.dashboard.web.answers import Answer
from shardyard.errors import UsageError
from shardyard.extras import install_command

STATIC = Path(__file__).parents[1] / "static"
PLOTLY = "vendor/plotly.min.js"
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".json": "application/json",
    ".woff2": "font/woff2",
}


def page(request: Request) -> Response:
    """`GET /`: the page, the same for all views."""
    return _file(STATIC / "index.html")


def static(request: Request) -> Response:
    """`GET /static/{path}`."""
    path = request.path_params["path"]
    if path == PLOTLY:
        return _file(plotly_file(), cached=True)
    if (known := _known().get(path)) is None:
        return Answer({"error": "There is no such file."}, 404)
    return _file(known)


@functools.cache
def _known() -> dict[str, Path]:
    """The files of the page; other names are never used as paths."""
    return {found.relative_to(STATIC).as_posix(): found for found in STATIC.rglob("*") if found.suffix in _KINDS}


def _file(path: Path, *, cached: bool = False) -> Response:
    if not path.is_file():
        return Answer({"error": f"{path.name} is missing from this installation."}, 404)
    # Starlette handles If-None-Match; a browser revalidates the files each time.
    control = "public, max-age=86400" if cached else "no-cache"
    return FileResponse(path, media_type=_KINDS.get(path.suffix), headers={"cache-control": control})


def plotly_file() -> Path:
    """plotly.min.js of the installed package.

    Raises:
        UsageError: plotly is not installed.
    """
    try:
        return Path(str(importlib.resources.files("plotly") / "package_data" / "plotly.min.js"))
    except ModuleNotFoundError as error:
        raise UsageError(f"plotly is not installed: `{install_command('dashboard')}`.") from error

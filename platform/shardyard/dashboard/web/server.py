"""The application: its routes, the index behind them, and the server."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from anyio import to_thread
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from shardyard.dashboard.alerts import alerts
from shardyard.dashboard.index.index import Index
from shardyard.dashboard.web import api, cluster, data_page, documents, jobs, static_files, sweeps
from shardyard.dashboard.web.answers import Answer, BadRequestError, NotFoundError, body_of, failure, integer
from shardyard.dashboard.web.api import State, state_of
from shardyard.dashboard.web.security import App, Gate, Guard
from shardyard.dashboard.web.stream import stream
from shardyard.errors import ShardyardError
from shardyard.launch.schedulers.registry import DEFAULT

logger = logging.getLogger(__name__)

# Concurrent handler threads; each may wait for a disk or for the cluster.
THREADS = 16

Answering = Callable[[Request], Response]


def make_app(index: Index, gate: Gate, address: str | None = None, data_dirs: Sequence[Path] = ()) -> App:
    """The application; the index is updated while it runs.

    data_dirs: folders whose files may be shown as documents of runs, besides the runs folder and Shardyard's own data.
    """
    dashboard = State(index, gate, address)
    plans = cluster.Plans()
    watcher = alerts.Watcher(index)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        to_thread.current_default_thread_limiter().total_tokens = THREADS
        index.on_change = watcher.changed
        index.start()
        watcher.start()
        yield
        watcher.stop()
        index.stop()

    app = Starlette(routes=_routes(), lifespan=lifespan)
    app.state.dashboard, app.state.jobs, app.state.plans = dashboard, jobs.Jobs(index, address), plans
    app.state.watcher, app.state.documents = watcher, documents.Documents([index.runs_dir, *data_dirs])
    app.state.data = data_page.DataPages([index.runs_dir, *data_dirs])
    return Guard(app, gate)


def _routes() -> list[Route]:
    run = "/api/runs/{id}"
    readers: dict[str, Answering] = {
        "/": static_files.page,
        "/api/session": api.session,
        "/api/runs": api.runs,
        f"{run}/recipe": api.recipe,
        f"{run}/events": api.events,
        f"{run}/marks": api.marks,
        f"{run}/samples": api.samples,
        f"{run}/experts": api.experts,
        f"{run}/documents": documents.documents,
        f"{run}/logs": api.log,
        f"{run}/system": api.system,
        run: api.run,
        "/api/series": api.series,
        "/api/compare": api.compare,
        "/api/export.csv": api.export_csv,
        "/api/report": api.report,
        "/api/sweeps": sweeps.list_all,
        "/api/sweeps/{id}": sweeps.show,
        "/api/jobs": _jobs,
        "/api/jobs/{id:path}/log": _log,
        "/api/recipes": _recipes,
        "/api/recipes/{name:path}": _recipe,
    }
    posts: dict[str, Callable[[Request, dict[str, object]], Any]] = {
        "/api/jobs": _submit,
        "/api/jobs/{id:path}/stop": _stop,
        f"{run}/resume": _resume,
        "/api/recipes/check": _check,
        "/api/recipes/data": data_page.data,
        "/api/alerts/test": _test_alert,
    }
    return [
        *(Route(path, _posting(handler), methods=["POST"]) for path, handler in posts.items()),
        Route("/static/{path:path}", static_files.static, methods=["GET"]),
        Route("/api/stream", _safely(stream), methods=["GET"]),
        *(Route(path, _reading(handler), methods=["GET"]) for path, handler in readers.items()),
        Route("/{path:path}", _nothing),
    ]


def _reading(handler: Answering) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return await to_thread.run_sync(handler, request)

    return _safely(endpoint)


def _posting(handler: Callable[[Request, dict[str, object]], Any]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        body = await body_of(request)
        return Answer(await to_thread.run_sync(handler, request, body))

    return _safely(endpoint)


def _safely(endpoint: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """Turn errors into messages; unexpected ones are logged, and their details are not sent to the page."""

    async def safe(request: Request) -> Response:
        try:
            return await endpoint(request)
        except (ShardyardError, OSError) as error:
            return failure(error)
        except Exception as error:
            logger.exception("%s failed", request.url.path)
            return Answer(
                {"error": f"This is a bug in Shardyard ({type(error).__name__}); the terminal has more."}, 500
            )

    return safe


async def _nothing(request: Request) -> Response:
    return Answer({"error": "There is nothing at this address."}, 404)


def _jobs_of(request: Request) -> jobs.Jobs:
    found: jobs.Jobs = request.app.state.jobs
    return found


def _jobs(request: Request) -> Response:
    return Answer(_jobs_of(request).state())


def _log(request: Request) -> Response:
    name, lines = request.path_params["id"], integer(request, "lines", 200, 1, 5000)
    text = _jobs_of(request).log(name, request.query_params.get("scheduler", ""), lines)
    if text is None:
        raise NotFoundError(f"There is no job {name[:100]!r} any more.")
    return Answer({"text": text})


def _recipes(request: Request) -> Response:
    return Answer(cluster.recipes())


def _recipe(request: Request) -> Response:
    return Answer({"text": cluster.recipe_text(request.path_params["name"])})


def _check(request: Request, body: dict[str, object]) -> cluster.CheckPayload:
    plans: cluster.Plans = request.app.state.plans
    name, overrides = cluster.checked_request(body)
    return plans.check(name, overrides, plan=body.get("plan", True) is not False)


def _submit(request: Request, body: dict[str, object]) -> dict[str, object]:
    state = state_of(request)
    name, overrides = cluster.checked_request(body, "recipe")
    job = cluster.submit(state.index, state.address, name, overrides)
    _jobs_of(request).expire(DEFAULT)
    state.index.poke()
    return {"id": job}


def _stop(request: Request, body: dict[str, object]) -> dict[str, object]:
    """Stop a job if its scheduler is given; else a run and its job, if it has one."""
    state, name = state_of(request), request.path_params["id"]
    scheduler, is_run = body.get("scheduler"), state.index.key_of(name) is not None
    job = None
    if scheduler is not None or not is_run:
        _jobs_of(request).state()  # in case the jobs have not been queried yet
        job = _jobs_of(request).find(name, None if scheduler is None else str(scheduler))
    if job is not None:
        job[0].stop(job[1])
        changed: str | None = job[0].name
    elif scheduler is None and is_run:
        changed = cluster.stop(state.index, state.address, name)
    else:
        raise NotFoundError(f"There is no job or run {name[:100]!r}.")
    if changed is not None:
        _jobs_of(request).expire(changed)
    state.index.poke(name)
    return {"stopping": name}


def _resume(request: Request, body: dict[str, object]) -> dict[str, object]:
    name = request.path_params["id"]
    cluster.resume(state_of(request).index, name)
    state_of(request).index.poke(name)
    return {"resumed": name}


def _test_alert(request: Request, body: dict[str, object]) -> dict[str, object]:
    state, run = state_of(request), body.get("run")
    if not isinstance(run, str):
        raise BadRequestError("run is missing", "run")
    row = state.row(run)
    watcher: alerts.Watcher = request.app.state.watcher
    return {"sent": watcher.test(row)}


# The server.


def serve(app: App, listening: socket.socket) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    # No access log: the first URL contains the token.
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=True,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=2,
        lifespan="on",
        h11_max_incomplete_event_size=128 * 1024,
    )
    logging.getLogger("shardyard").addHandler(logging.StreamHandler(sys.stderr))
    uvicorn.Server(config).run(sockets=[listening])

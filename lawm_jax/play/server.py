"""Serves the page: one session per browser, bounded in number and memory.

Frames travel over a websocket, as JPEG bytes. The page asks for a step at each tick of a held key,
and for no more than two at once, so that no queue grows; the server answers the messages of a
session one after the other. Where websockets do not pass, as in Colab, the page posts the same
messages. Steps of all sessions share one thread, and plans, films and uploads another, so that a
person can play while another plans.

Plain Starlette and not Gradio: an event of Gradio is a request that joins a queue, and a stream of
server-sent events from which the page fetches its image, several round trips per frame, and a key
that is held has no event at all.
"""

import asyncio
import concurrent.futures
import contextlib
import json
import logging
import pathlib
import secrets
import time

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocketDisconnect

from lawm_jax.play import messages, uploads
from lawm_jax.play import session as session_

SESSIONS = 8
IDLE = 180.0  # seconds after which a session without a websocket ends
MESSAGE = 2**14  # bytes
FILES = {"page.html": "text/html", "page.css": "text/css"}
FILES |= dict.fromkeys(("line.js", "play.js", "tabs.js"), "text/javascript")
HERE = pathlib.Path(__file__).parent
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; media-src blob:; connect-src 'self' ws: wss:",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
}
_LOG = logging.getLogger(__name__)


class Open:
    """Holds one open session.

    Attributes:
      session: `session.Session`.
      token: str, which only its page knows.
      connected: whether a websocket is open.
      lock: held while a message is answered.
      seen: time of the last message.
      receiving: whether an upload is on its way.
    """

    def __init__(self, session, connected):
        self.session, self.connected = session, connected
        self.token, self.lock = secrets.token_urlsafe(16), asyncio.Lock()
        self.seen, self.receiving = time.monotonic(), False


class Server:
    """Routes requests to sessions; `app` is the ASGI application."""

    def __init__(self, shared, hosts=("localhost", "127.0.0.1")):
        """Makes the application.

        Args:
          shared: `shared.Shared`.
          hosts: names under which the page may be asked for; others are refused, so that a page
            elsewhere cannot reach this one by a name that it makes point here. None allows all.
        """
        self.shared, self.open = shared, {}
        self.quick, self.slow = (concurrent.futures.ThreadPoolExecutor(1) for _ in range(2))
        routes = [
            Route("/", self.page),
            Route("/{name}", self.page),
            Route("/session", self.begin, methods=["POST"]),
            Route("/session/{token}", self.ask, methods=["POST"]),
            Route("/session/{token}/upload", self.upload, methods=["POST"]),
            WebSocketRoute("/socket", self.socket),
        ]
        guard = [Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))] if hosts else []
        self.app = Starlette(routes=routes, middleware=guard)

    async def page(self, request):
        """Returns a file of the page."""
        name = request.path_params.get("name", "page.html")
        if name not in FILES:
            return Response(status_code=404)
        return FileResponse(HERE / name, media_type=FILES[name], headers=HEADERS)

    async def socket(self, websocket):
        """Answers the messages of one browser until it leaves."""
        origin, host = websocket.headers.get("origin", ""), websocket.headers.get("host", "")
        if origin and origin.partition("://")[2] != host:
            await websocket.close(1008, "expected a page of this server")
            return
        await websocket.accept()
        try:
            entry = self._begin(connected=True)
        except messages.Refused as error:
            await websocket.send_json({"error": str(error), "full": True})
            await websocket.close(1013)
            return
        try:
            await websocket.send_json({"token": entry.token})
            while True:
                reply = await self._answer(entry, await websocket.receive_text())
                if isinstance(reply, bytes):
                    await websocket.send_bytes(reply)
                else:
                    await websocket.send_json(reply)
        except (WebSocketDisconnect, KeyError):  # KeyError: the message is not text
            pass
        finally:
            self.open.pop(entry.token, None)
            with contextlib.suppress(RuntimeError):
                await websocket.close()

    async def begin(self, request):
        """Begins a session without a websocket."""
        if request.headers.get("content-type") != "application/json":  # no other site can send it
            return _json({"error": "expected application/json"}, 415)
        try:
            return _json({"token": self._begin(connected=False).token})
        except messages.Refused as error:
            return _json({"error": str(error), "full": True}, 503)

    async def ask(self, request):
        """Answers one message of a session without a websocket."""
        entry = self.open.get(request.path_params["token"])
        if entry is None:
            return _json({"error": GONE, "gone": True}, 404)
        text = b""
        async for chunk in request.stream():
            text += chunk
            if len(text) > MESSAGE:
                return _json({"error": f"expected at most {MESSAGE} bytes, got more"}, 413)
        reply = await self._answer(entry, text)
        if isinstance(reply, bytes):
            return Response(reply, media_type="application/octet-stream", headers=HEADERS)
        return _json(reply)

    async def upload(self, request):
        """Receives a video: the body is the file, `name` and `start` are in the query."""
        entry = self.open.get(request.path_params["token"])
        if entry is None:
            return _json({"error": GONE, "gone": True}, 404)
        name, path = request.query_params.get("name", ""), None
        try:
            start = float(request.query_params.get("start", 0))
            declared = request.headers.get("content-length")
            if not 0 <= start <= uploads.LONGEST:
                raise ValueError(start)
            declared = int(declared) if declared else None
        except ValueError as error:
            return _json({"error": f"start: expected a number of seconds >= 0, got {error}"}, 400)
        if entry.receiving:
            return _json({"error": "expected one upload at a time, got a second one"}, 409)
        entry.receiving = True
        try:
            path = await uploads.receive(request.stream(), name, declared)
            world, fps = self.shared.world, self.shared.fps
            clip = await self._run(self.slow, uploads.read, path, name, start, world, fps)
        except messages.Refused as error:
            return _json({"error": str(error)}, 422)
        except ClientDisconnect:
            return Response(status_code=400)
        finally:
            entry.receiving = False
            if path:
                pathlib.Path(path).unlink(missing_ok=True)
        async with entry.lock:
            entry.seen = time.monotonic()
            return _json(entry.session.add(clip))

    def _begin(self, connected):
        """Opens a session, and ends those that nobody uses."""
        now = time.monotonic()
        for token, entry in list(self.open.items()):
            if not entry.connected and now - entry.seen > IDLE:
                del self.open[token]
        if len(self.open) >= SESSIONS:
            raise messages.Refused(
                f"expected at most {SESSIONS} open pages, got another; close one first"
            )
        opened = Open(session_.Session(self.shared), connected)
        self.open[opened.token] = opened
        return opened

    async def _answer(self, entry, text):
        """Answers one message, JSON in str or bytes, with a dict or bytes."""
        entry.seen = time.monotonic()
        try:
            if len(text) > MESSAGE:
                raise messages.Refused(f"expected at most {MESSAGE} bytes, got {len(text)}")
            try:
                message = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise messages.Refused(f"expected JSON, got {error}") from error
            quick = messages.command(message) in session_.QUICK
            pool = self.quick if quick else self.slow
            async with entry.lock:
                return await self._run(pool, entry.session.answer, message)
        except messages.Refused as error:
            return {"error": str(error)}
        except Exception:
            _LOG.exception("failed to answer a message")
            return {"error": FAILED}

    @staticmethod
    async def _run(pool, function, *args):
        return await asyncio.get_running_loop().run_in_executor(pool, function, *args)


def serve(shared, port):
    """Serves the page on localhost until the process is interrupted."""
    import uvicorn

    print(f"open http://localhost:{port}", flush=True)
    uvicorn.Server(config(shared, port)).run()


def config(shared, port, hosts=("localhost", "127.0.0.1")):
    """Returns the configuration of a uvicorn server on localhost; `hosts` as in `Server`."""
    import uvicorn

    return uvicorn.Config(
        Server(shared, hosts).app,
        host="127.0.0.1",
        port=port,
        ws="websockets-sansio",
        ws_max_size=MESSAGE,
        log_level="warning",
    )


FAILED = "internal server error; see the traceback in the terminal"
GONE = "the session of this page has ended; reload the page"


def _json(value, status=200):
    return JSONResponse(value, status, headers=HEADERS)

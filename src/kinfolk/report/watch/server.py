"""Serves a live report to browsers on this machine."""

import socketserver
import sys
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from kinfolk.errors import KinfolkError
from kinfolk.report.watch.live import LiveReport

LOOPBACK = "127.0.0.1"

_NAMES = (LOOPBACK, "localhost")
"""What browsers call this machine. A page from elsewhere whose name was made to point here asks for another one."""


class Server(ThreadingHTTPServer):
    """Two addresses: `/` is the page, and `/update` the page without its scripts, or nothing if the asker has it."""

    daemon_threads = True

    def __init__(self, report: LiveReport, port: int, on_finished: Callable[[], None]) -> None:
        self.report = report
        self._on_finished = on_finished
        self._told = False
        try:
            super().__init__((LOOPBACK, port), _Handler)
        except (OSError, OverflowError) as error:
            raise KinfolkError(
                f"port {port} cannot be used ({getattr(error, 'strerror', None) or error})",
                where="--port",
                fix="give another port, or 0 for any that is free",
            ) from error

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.server_address[1]}/"

    def server_bind(self) -> None:
        # That of HTTPServer asks the network for this machine's name, which can take long.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = LOOPBACK, int(self.server_address[1])

    def service_actions(self) -> None:
        """Tell, once, that the builds have ended; called about twice a second."""
        finished = self.report.finished()
        if finished and not self._told:
            self._on_finished()
        self._told = finished

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A tab that is closed while it is answered is no fault.
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    server_version = "kinfolk"
    sys_version = ""
    timeout = 60
    """Seconds that a connection may stay silent."""

    def do_GET(self) -> None:
        if str(self.headers.get("Host")).partition(":")[0].lower() not in _NAMES:
            self._send(HTTPStatus.FORBIDDEN, b"This report is served to its own machine only.\n", "text/plain")
        elif self.path == "/":
            view = self.server.report.view()
            self._send(HTTPStatus.OK, view.page, "text/html")
        elif self.path == "/update":
            view = self.server.report.view()
            known = self.headers.get("If-None-Match") == f'"{view.version}"'
            self._send(HTTPStatus.NOT_MODIFIED if known else HTTPStatus.OK, view.update, "text/html", view.version)
        else:
            self._send(HTTPStatus.NOT_FOUND, b"There is nothing here but the report at /\n", "text/plain")

    def do_HEAD(self) -> None:
        self.do_GET()

    def _send(self, status: HTTPStatus, body: bytes, kind: str, version: str = "") -> None:
        self.send_response(status)
        if version:
            self.send_header("ETag", f'"{version}"')
            self.send_header("Seconds-Since-Change", str(self.server.report.seconds_since_change() or ""))
        if status != HTTPStatus.NOT_MODIFIED:
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.end_headers()
        if self.command != "HEAD" and status != HTTPStatus.NOT_MODIFIED:
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None: ...

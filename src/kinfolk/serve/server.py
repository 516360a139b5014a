"""A listening socket, and uvicorn behind it."""

import ipaddress
import logging
import socket
from dataclasses import dataclass

import uvicorn
from fastapi import FastAPI

from kinfolk.errors import KinfolkError
from kinfolk.serve.gate import Door

GRACE_SECONDS = 30
"""After a signal, answers that are being made may end within it."""

MOST_CONNECTIONS = 1000


@dataclass(frozen=True)
class Address:
    """Where to listen."""

    host: str
    port: int
    """0 takes a free one."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise KinfolkError(f"{self.port} is no port", where="--port", fix="give 0 to 65535")


def door(address: Address, key: str | None) -> Door:
    """Who may come in: without a key, only this machine. Raises KinfolkError for a key that no client can send."""
    if key is not None and not (key and key.isascii() and key.isprintable() and " " not in key):
        raise KinfolkError(
            "the API key is empty or has characters that a header cannot carry",
            where="--api-key",
            fix="give ASCII letters, digits and signs, without spaces",
        )
    if key is None and not _is_loopback(address.host):
        raise KinfolkError(
            f"{address.host} can be reached from other machines, and there is no API key",
            where="--host",
            fix="set the environment variable KINFOLK_API_KEY, or listen on 127.0.0.1",
        )
    hosts = None if key is not None else frozenset({"localhost", "127.0.0.1", "::1", address.host.lower()})
    return Door(key, hosts)


def listen(address: Address) -> socket.socket:
    """A socket that listens. Raises KinfolkError where that cannot be."""
    try:
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_ADDRCONFIG
        )
        return socket.create_server(found[0][4][:2], family=found[0][0], backlog=128)
    except (OSError, UnicodeError) as error:
        raise KinfolkError(
            f"cannot listen on {address.host} port {address.port}: {getattr(error, 'strerror', None) or error}",
            where="--host, --port",
            fix="give an address of this machine and a free port (--port 0 takes one)",
        ) from error


def url_of(listening: socket.socket) -> str:
    """The server's address for a client on this machine."""
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(app: FastAPI, listening: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM, which is raised again once the answers under way have ended."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    server_of(app).run(sockets=[listening])


def server_of(app: FastAPI) -> uvicorn.Server:
    """uvicorn with nothing that the application does not need."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http="h11",
            ws="none",
            loop="asyncio",
            lifespan="on",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=MOST_CONNECTIONS + 1,  # uvicorn refuses the one that reaches it
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
    )


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

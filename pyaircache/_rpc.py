"""Addresses of ggml RPC servers."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from .errors import ArgumentError, EngineError

_TIMEOUT_S = 5.0


def checked(servers: str | Sequence[str] | None) -> str | None:
    """The servers in the engine's form ``"host:port,host:port"``, None for none.

    Each is tried first: ggml ends the process when it cannot reach a server.

    Raises:
        ArgumentError: An address is not of the form ``host:port``.
        EngineError: Nothing answers at an address.
    """
    if servers is None:
        return None
    addresses = [one.strip() for one in (servers.split(",") if isinstance(servers, str) else servers)]
    for address in addresses:
        host, _, port = address.rpartition(":")
        if not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise ArgumentError(f"an RPC server is named as host:port, got {address!r}")
        try:
            socket.create_connection((host, int(port)), timeout=_TIMEOUT_S).close()
        except OSError as exc:
            raise EngineError(f"no RPC server answers at {address}: {exc.strerror or exc}") from exc
    return ",".join(addresses)

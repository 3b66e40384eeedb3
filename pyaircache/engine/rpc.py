"""Addresses of ggml RPC servers."""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence

from ..checks import named, shown, texts
from ..errors import ArgumentError, EngineError

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
    addresses = [
        one.strip() for one in texts("rpc_servers", servers.split(",") if isinstance(servers, str) else servers)
    ]
    for address in addresses:
        host, _, port = address.rpartition(":")
        if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65536:
            raise ArgumentError(f"an RPC server is named as host:port, got {shown(address)}")
        try:
            socket.create_connection((host, int(port)), timeout=_TIMEOUT_S).close()
        except OSError as exc:
            raise EngineError(f"no RPC server answers at {named(address)}: {exc.strerror or exc}") from exc
        except ValueError as exc:  # a host that cannot be encoded
            raise ArgumentError(f"an RPC server is named as host:port, got {shown(address)}") from exc
    return ",".join(addresses)

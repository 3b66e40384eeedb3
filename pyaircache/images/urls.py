"""Pictures from the web, where that is allowed; with the extra ``pyaircache[urls]``.

Whoever may name an address could reach what only this machine can: its own services, those of its network, a cloud's
metadata. So every host is resolved here, must have public addresses only, and is connected to at the address that was
checked; that holds for every redirect, too. Proxies of the environment are not used, since they would resolve again.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from typing import Any

from ..checks import shown
from ..errors import ImageError

MAX_BYTES = 64 << 20
TIMEOUT_S = 30.0  # in all: name, connections, redirects, the picture
MAX_REDIRECTS = 5
_GRACE_S = 1.0  # for the loop's own end
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_RESERVED = [  # what `ipaddress` takes for global, in some of its versions
    ipaddress.ip_network("fec0::/10"),  # site-local
    ipaddress.ip_network("168.63.129.16/32"),  # Azure's inner services
    ipaddress.ip_network("192.88.99.0/24"),  # the nearest 6to4 relay
]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_url(text: str) -> bool:
    """Whether it is the address of a picture on the web."""
    return text[:8].lower().startswith(("http://", "https://"))


def fetch(url: str, allowed: bool) -> bytes:
    """What lies at an address.

    Raises:
        ImageError: It is not allowed, not public, too large, too slow or not there.
    """
    if not allowed:
        raise ImageError(
            f"the image {shown(url)} was not fetched: addresses are not allowed here; allow them with "
            "Chat(image_urls=True), or download it first"
        )
    try:
        import httpx
    except ImportError:
        raise ImageError("httpx is needed to fetch images from addresses: pip install 'pyaircache[urls]'") from None
    try:
        return _in_a_thread(url)
    except (TimeoutError, asyncio.TimeoutError, httpx.TimeoutException):  # two classes until Python 3.11
        raise ImageError(f"the image {shown(url)} was not there within {TIMEOUT_S:g} seconds") from None
    except httpx.TooManyRedirects:
        raise ImageError(f"the image {shown(url)} is redirected more than {MAX_REDIRECTS} times") from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as exc:
        raise ImageError(f"the image {shown(url)} cannot be fetched: {exc or type(exc).__name__}") from None


def is_public(address: Address) -> bool:
    """Whether it can be reached from everywhere, so that reaching it from here gives nothing away."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        if address in _NAT64:
            inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if not all(is_public(one) for one in inner if one is not None):
            return False
        if address.ipv4_mapped is not None:
            return True
    if any(address in network for network in _RESERVED):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


async def _public_address(host: str, port: int) -> str:
    """The address to connect to.

    Raises:
        ImageError: The host has an address that is not public.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(sockaddr[0]) for *_, sockaddr in found]
    for address in addresses:
        if "%" in address or not is_public(ipaddress.ip_address(address)):  # with a zone: link-local
            raise ImageError(
                f"the image's host {shown(host)} has the address {address}, which is not a public one; "
                "images are fetched from public addresses only: download it first"
            )
    return addresses[0]


def _in_a_thread(url: str) -> bytes:
    """Runs `_fetch` in a loop of its own: this thread may have one that runs."""
    done: list[Any] = []

    def run() -> None:
        try:
            done.append(asyncio.run(asyncio.wait_for(_fetch(url), TIMEOUT_S)))
        except BaseException as exc:
            done.append(exc)

    thread = threading.Thread(target=run, name="pyaircache-fetch", daemon=True)
    thread.start()
    thread.join(TIMEOUT_S + _GRACE_S)
    if not done:  # a name that is being resolved cannot be stopped: its thread ends some time later
        raise TimeoutError
    if isinstance(done[0], BaseException):
        raise done[0]
    data: bytes = done[0]
    return data


async def _fetch(url: str) -> bytes:
    import httpx

    class PublicOnly(httpx.AsyncHTTPTransport):
        """Connects to addresses that were checked, for the host that was named."""

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            host = request.url.host
            port = request.url.port or (443 if request.url.scheme == "https" else 80)
            address = await _public_address(host, port)
            return await super().handle_async_request(
                httpx.Request(
                    request.method,
                    request.url.copy_with(host=address),
                    headers=request.headers,  # with the Host that was named
                    extensions=request.extensions | {"sni_hostname": host},  # whose certificate is checked
                )
            )

    client = httpx.AsyncClient(
        transport=PublicOnly(retries=0),
        trust_env=False,
        follow_redirects=True,
        max_redirects=MAX_REDIRECTS,
        timeout=TIMEOUT_S,
        headers={"Accept": "image/*, application/pdf", "Accept-Encoding": "identity", "User-Agent": "pyaircache"},
    )
    async with client, client.stream("GET", url) as response:
        if response.status_code != 200:
            raise ImageError(f"the image {shown(url)} cannot be fetched: the server answers {response.status_code}")
        data = bytearray()
        async for chunk in response.aiter_raw():  # as it was sent: what unpacks itself is no picture
            data += chunk
            if len(data) > MAX_BYTES:
                raise ImageError(f"the image {shown(url)} has more than {MAX_BYTES >> 20} MiB; download it first")
        return bytes(data)

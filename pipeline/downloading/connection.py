"""Connects to public addresses only, and ends every operation of a socket by a deadline.

The address that is checked is the one that is connected to, so a name cannot change its address in between. Every
connection checks it, whether the name was looked up for it or before.
"""

import io
import ipaddress
import socket
import ssl
import time
from collections.abc import Iterable
from functools import cache

from lotlip_data.pipeline.downloading import failures
from lotlip_data.pipeline.downloading.failures import FetchError
from lotlip_data.pipeline.downloading.resolver import Address, Resolver
from lotlip_data.pipeline.downloading.url_parsing import Request

_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class Connector:
    """Opens connections.

    Args:
        allowed: Hosts that may have a private address.
        timeout: Time limit of one operation in seconds.
        resolver: Looks up the addresses of hosts.
    """

    def __init__(self, allowed: Iterable[str], timeout: float, resolver: Resolver) -> None:
        self._allowed = frozenset(host.lower() for host in allowed)
        self._timeout, self._resolver = timeout, resolver

    def connect(self, target: Request, deadline: float) -> socket.socket:
        """Connect to the first allowed address of the host that answers."""
        last_error: OSError | None = None
        for family, address in self._addresses(target.host, target.port, deadline):
            seconds = _remaining(self._timeout, deadline)
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                sock.settimeout(seconds)
                sock.connect(address)
                if target.tls:
                    return _tls().wrap_socket(sock, server_hostname=target.host.rstrip("."))
                return sock
            except OSError as error:
                sock.close()
                last_error = error
        assert last_error is not None
        self._resolver.forget(target.host)
        raise last_error

    def _addresses(self, host: str, port: int, deadline: float) -> list[Address]:
        """The allowed socket addresses of `host`: at least one."""
        try:
            resolved = self._resolver.addresses(host, _remaining(self._timeout, deadline))
        except OSError as error:
            raise FetchError(failures.NOT_RESOLVED, error.strerror or "") from error
        allowed: list[Address] = [
            (family, (address[0], port, *address[2:]))
            for family, address in resolved
            if host in self._allowed or is_public(str(address[0]))
        ]
        if not allowed:
            raise FetchError(
                failures.NOT_ALLOWED, "not a public address; add hosts of your intranet to `download.allow_hosts`"
            )
        return allowed


@cache
def _tls() -> ssl.SSLContext:
    """One context per process: reading the certificates takes as long as downloading and storing four images."""
    return ssl.create_default_context()


def is_public(text: str) -> bool:
    """Whether an IP address is on the public internet. Checks the IPv4 address inside an IPv6 address as well."""
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        embedded = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            embedded = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if embedded is not None:
            address = embedded
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


class TimedSocket:
    """A socket whose every call ends by the deadline of the whole fetch. The owner of `sock` closes it."""

    def __init__(self, sock: socket.socket, timeout: float, deadline: float) -> None:
        self._sock, self._timeout, self._deadline = sock, timeout, deadline

    def sendall(self, data: bytes) -> None:
        self._armed().sendall(data)

    def recv_into(self, buffer) -> int:  # type: ignore[no-untyped-def]  # any writable buffer
        return self._armed().recv_into(buffer)

    def _armed(self) -> socket.socket:
        """The socket, with the remaining time as its timeout. Setting it is a system call, so only a change sets it."""
        timeout = _remaining(self._timeout, self._deadline)
        if timeout != self._sock.gettimeout():
            self._sock.settimeout(timeout)
        return self._sock

    def reader(self) -> io.BufferedReader:
        """A buffered stream of what the server sends."""
        return io.BufferedReader(_Reader(self))


class _Reader(io.RawIOBase):
    def __init__(self, sock: TimedSocket) -> None:
        self._sock = sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]  # any writable buffer
        return self._sock.recv_into(buffer)


def _remaining(timeout: float, deadline: float) -> float:
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise FetchError(failures.TIMEOUT, "of the whole fetch")
    return min(timeout, seconds)

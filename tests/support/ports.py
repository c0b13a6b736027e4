"""Ports for servers that a test starts."""

import random
import socket
from itertools import islice

PORTS = range(20_000, 32_768)
"""Above those that Ray gives its workers and below those that the system gives to clients: who asks for one by name is
the only one who takes it."""


def free_ports(count: int) -> list[int]:
    """As many ports of which nobody has any at present."""
    drawn = random.SystemRandom().sample(PORTS, len(PORTS))  # not the same in two test runs, whatever their seeds
    return list(islice(filter(can_be_bound, drawn), count))


def can_be_bound(port: int) -> bool:
    with socket.socket() as tried:
        try:
            tried.bind(("", port))
        except OSError:
            return False
    return True

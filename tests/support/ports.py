"""Free ports for servers that a test starts."""

import random
import socket
from itertools import islice

PORTS = range(20_000, 32_768)
"""Above the ports of Ray's workers and below the ephemeral ports, so that only explicit requests use them."""


def free_ports(count: int) -> list[int]:
    """`count` ports that no process uses at present."""
    candidates = random.SystemRandom().sample(PORTS, len(PORTS))  # differs between two test runs with equal seeds
    return list(islice(filter(can_be_bound, candidates), count))


def can_be_bound(port: int) -> bool:
    """Whether no process listens at the port."""
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True

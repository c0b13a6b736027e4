"""The process that converts images for `isolation.Converter`: one after another, within limits of memory and CPU time.

It reads the sizes of bodies from a socket and the bodies from a `SharedFile`. It answers each with messages: `Cost`, if
the decoding takes much memory, which the other side has to acknowledge; then `Done` or `Failed`. It ends when the other
side closes the socket.
"""

import contextlib
import json
import os
import resource
import sys
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import cv2

from lotlip_data.pipeline.downloading.failures import FetchError
from lotlip_data.pipeline.downloading.images.conversion import convert
from lotlip_data.pipeline.downloading.images.messages import (
    HEAVY_BYTES,
    MAX_CPU_SECONDS,
    ConversionSettings,
    Converted,
    Cost,
    Done,
    Failed,
    Ready,
    SharedFile,
)

_RESERVE_BYTES = 256 << 20
"""Memory of this process beside the images that it decodes."""


def main() -> None:
    """Convert the images that arrive. Arguments: the descriptors of the socket and the file, and the settings."""
    descriptor, file = int(sys.argv[1]), SharedFile(int(sys.argv[2]))
    settings = ConversionSettings(**json.loads(sys.argv[3]))
    cv2.setNumThreads(1)
    _silence()
    _limit_memory(settings.max_decoded_bytes)
    with contextlib.suppress(OSError):  # the kernel should end this process first when memory runs out
        Path("/proc/self/oom_score_adj").write_text("1000")
    with Connection(descriptor) as connection, contextlib.suppress(EOFError, ConnectionError, KeyboardInterrupt):
        connection.send(Ready())
        while True:
            data = file.take(int.from_bytes(connection.recv_bytes(), "big"))
            answer = _convert(connection, data, settings)
            if isinstance(answer, Converted):
                file.put(answer.body)
                answer = Done(replace(answer, body=b""), len(answer.body))
            connection.send(answer)


def _convert(connection: Connection, data: bytes, settings: ConversionSettings) -> Converted | Failed | Done:
    def announce(memory: int) -> None:
        if memory > HEAVY_BYTES:
            connection.send(Cost(memory))
            connection.recv_bytes()

    _limit_cpu_time()
    try:
        return convert(data, settings, announce)
    except FetchError as error:
        return Failed(str(error))


def _limit_cpu_time() -> None:
    """End this process with SIGXCPU if it works longer from now on."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(usage.ru_utime + usage.ru_stime) + MAX_CPU_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))


def _limit_memory(image_bytes: int) -> None:
    """Let allocations fail beyond what the images may take, and what this process takes already."""
    lines = Path("/proc/self/status").read_text().splitlines()
    used = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmData"))
    limit = used + image_bytes + image_bytes // 4 + _RESERVE_BYTES
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _silence() -> None:
    """Discard what decoders print about damaged files."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (1, 2):
        os.dup2(null, descriptor)
    os.close(null)

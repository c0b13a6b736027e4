"""Peak memory of a test's child process."""

from pathlib import Path


def peak_memory_bytes() -> int:
    """Peak resident memory of this process, in bytes. `getrusage` would include that of its parent process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (high_water_kib,) = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    return int(high_water_kib) * 1024

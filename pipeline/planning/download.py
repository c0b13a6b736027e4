"""The time that the download of a manifest takes: from the run's own speed, a given one, or this machine's CPUs."""

import os
from typing import TypedDict

from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.wording import count
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.planning.hardware import Hardware
from lotlip_data.pipeline.reporting.status import covered, get_status

URLS_PER_CPU = 50.0
"""URLs per second and CPU, assumed. On loopback it is above 100; hosts of the web answer late or not at all."""
SECONDS_PER_URL = 1.0
"""Mean time of one URL in one thread, with time-outs, assumed."""


class DownloadEstimate(TypedDict):
    """Estimated time of the download, as `plan --json` prints it."""

    urls: int
    """URLs that remain to be tried."""
    urls_per_s: float
    seconds: float
    source: str
    """Where the speed comes from."""
    assumes: str


def estimate_download(
    manifest: Manifest, images: int | None, hardware: Hardware, run: Run | None
) -> DownloadEstimate | None:
    """Estimate the time of the download; None if neither a list nor a run says how many URLs there are.

    Args:
        manifest: The manifest, for the number of threads.
        images: URLs of the lists without duplicates, or None if it is unknown.
        hardware: The cluster; its `download_speed` takes precedence.
        run: An existing run of the manifest.
    """
    status = get_status(run)["download"] if run else None
    urls = status["left"] if status else images
    if urls is None:
        return None
    if hardware.download_speed is not None:
        speed, source, assumes = hardware.download_speed, "as given", "the speed that is given"
    elif run and (measured := measured_speed(run)):
        speed, source, assumes = measured, "as in the run so far", "the remaining URLs are as fast as those of the run"
    else:
        cpus = os.cpu_count() or 1
        speed = cpus * min(URLS_PER_CPU, manifest.download.threads / SECONDS_PER_URL)
        source = f"assumed, for {count(cpus, 'CPU')} as here; see --download-speed"
        assumes = (
            f"{URLS_PER_CPU:g} URLs per second and CPU, {SECONDS_PER_URL:g} s per URL in each of "
            f"{manifest.download.threads} threads; slow hosts, limits per host and the network make it slower"
        )
    return {"urls": urls, "urls_per_s": speed, "seconds": urls / speed, "source": source, "assumes": assumes}


def measured_speed(run: Run) -> float | None:
    """URLs per second of a run while it downloaded; None if it has not."""
    records = ledger.recorded(run.image_ledger).values()
    seconds = covered((record.started, record.ended) for record in records)
    return sum(record.rows for record in records) / seconds if seconds else None

"""Image shards of synthetic scenes, written by the download stage itself, and the tar reader of the compared sides."""

import tarfile
from collections.abc import Iterator
from pathlib import Path

Member = tuple[str, bytes]


def write_run(url: str, shards: int, images: int, pixels: int) -> list[str]:
    """Download scenes from a server on loopback into a run.

    Args:
        url: The run's folder, which must be local.
        shards: Number of shards.
        images: Number of images per shard.
        pixels: Width and height of the images.

    Returns:
        The paths of the tars.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from lotlip_data.manifests.formats.schema import LISTS
    from lotlip_data.manifests.run_layout import Run
    from lotlip_data.manifests.settings import DownloadSettings
    from lotlip_data.manifests.sources.sample_id import uid_from_url
    from lotlip_data.pipeline.downloading.commit import DownloadTask, fetch_and_commit
    from lotlip_data.synthetic.http_server import SceneServer
    from lotlip_data.synthetic.scenes import SPLITS

    run, tars = Run.at(url), []
    Path(run.lists).mkdir(parents=True)
    settings = DownloadSettings(threads=16, per_host=16, allow_hosts=("127.0.0.1",))
    with SceneServer(pixels=pixels) as server:
        for shard in range(shards):
            seeds = SPLITS["images"][shard * images : (shard + 1) * images]
            urls = [f"{server.url}/scene/{seed}.jpg" for seed in seeds]
            rows = [{"uid": uid_from_url(url), "url": url, "texts": [""], "sources": ["synthetic"]} for url in urls]
            pq.write_table(pa.Table.from_pylist(rows, schema=LISTS), run.list_shard(shard))
            marker = fetch_and_commit(DownloadTask(run, shard, images, settings))
            assert marker["successes"] == images, marker
            tars.append(run.image_file(marker["tar"]))
    return tars


def read_tar(path: str) -> Iterator[Member]:
    """The key and JPEG of each image, read as a stream. All sides except ours use it."""
    with open(path, "rb") as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        for member in tar:
            if member.name.endswith(".jpg") and (content := tar.extractfile(member)):
                yield member.name.removesuffix(".jpg"), content.read()

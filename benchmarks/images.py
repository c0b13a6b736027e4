"""Image shards of synthetic scenes, as the download stage commits them, and the tar reader of the compared sides."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator

Member = tuple[str, bytes]


def write_run(url: str, shards: int, images: int, pixels: int) -> list[str]:
    """Write a run with image shards.

    Args:
        url: The run's folder, which must be local.
        shards: Number of shards.
        images: Number of images per shard.
        pixels: Width and height of the images.

    Returns:
        The paths of the tars.
    """
    from lotlip_data.manifests import storage
    from lotlip_data.manifests.run_layout import Run, shard_name
    from lotlip_data.synthetic.scenes import SPLITS, render, sample_scene

    run, tars = Run.at(url), []
    for shard in range(shards):
        scenes = []
        for row in range(images):
            content = io.BytesIO()
            render(sample_scene(SPLITS["images"][shard * images + row]), pixels).save(content, "JPEG", quality=95)
            scenes.append((f"{shard_name(shard)}{row:04d}", content.getvalue()))
        stem = f"{shard_name(shard)}-benchmark"
        tars.append(run.image_file(f"{stem}.tar"))
        storage.create(tars[-1], _tar(scenes))
        # The Parquet file is named but not written: recaptioning reads the tar alone.
        stats = {"tar": f"{stem}.tar", "parquet": f"{stem}.parquet", "count": images, "successes": images}
        stats["status_dict"] = {"success": images}
        storage.create(run.image_stats(shard), json.dumps(stats).encode())
    return tars


def _tar(scenes: list[Member]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for key, image in scenes:
            digest = hashlib.sha256(image).hexdigest()
            meta = json.dumps({"key": key, "uid": digest[:32], "sha256": digest}).encode()
            for ending, data in (("jpg", image), ("json", meta)):
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return content.getvalue()


def read_tar(path: str) -> Iterator[Member]:
    """The key and JPEG of each image, read as a stream. All sides except ours use it."""
    with open(path, "rb") as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        for member in tar:
            if member.name.endswith(".jpg") and (content := tar.extractfile(member)):
                yield member.name.removesuffix(".jpg"), content.read()

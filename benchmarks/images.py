"""Image shards as the download stage commits them, of scenes of the offline world, and how every side reads them."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator

Member = tuple[str, bytes]


def write_run(url: str, shards: int, images: int, pixels: int) -> list[str]:
    """Writes `shards` × `images` scenes of `pixels` squared; returns the paths of the tars. url: a local folder."""
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
        name = f"{shard_name(shard)}-benchmark.tar"
        tars.append(storage.join(run.images, name))
        storage.create(tars[-1], _tar(scenes))
        stats = {"tar": name, "count": images, "successes": images}
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
    """Key and JPEG of each image, as a stream; what each side but ours reads with."""
    with open(path, "rb") as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        for member in tar:
            if member.name.endswith(".jpg") and (content := tar.extractfile(member)):
                yield member.name.removesuffix(".jpg"), content.read()

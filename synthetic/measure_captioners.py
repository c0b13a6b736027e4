"""Accuracy of a tiny captioner: precision and recall of its facts on unseen scenes.

python -m lotlip_data.synthetic.measure_captioners synthetic/checkpoints/tiny-llava --scenes 500
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from lotlip_data.synthetic.caption_facts import FactScore
from lotlip_data.synthetic.caption_writers import WRITERS, long_text
from lotlip_data.synthetic.scenes import SPLITS, Scene, render, sample_scene


def web_image(scene: Scene, pixels: int) -> Image.Image:
    """The scene's picture after JPEG compression at quality 95, as captioners see downloaded images."""
    buffer = io.BytesIO()
    render(scene, pixels).save(buffer, "JPEG", quality=95)
    return Image.open(buffer).convert("RGB")


def measure(folder: Path, seeds: Sequence[int], pixels: int = 96, batch: int = 50) -> dict[str, Any]:
    """Caption scenes greedily in float32 and score the facts of the captions.

    Args:
        folder: The captioner's folder, named tiny-<writer>.
        seeds: Seeds of the scenes.
        pixels: Width and height of the pictures.
        batch: Number of pictures per forward pass.

    Returns:
        Precision and recall of facts, the share of texts that equal the writer's word for word, the number of texts
        that the model did not end, and the seconds.

    Raises:
        ValueError: The folder's name is not that of a tiny captioner.
    """
    import torch

    from lotlip_data.synthetic.recipes.export import Captioner

    torch.set_num_threads(1)  # a second thread makes models this small slower, by minutes on a busy machine
    captioner = Captioner(folder)
    writer = folder.name.removeprefix("tiny-")
    if writer not in WRITERS:
        raise ValueError(
            f"{folder}: the folder's name must be tiny-<writer>, where the writer is one of {', '.join(WRITERS)}"
        )
    score, exact, unfinished, started = FactScore(), 0, 0, time.monotonic()
    for start in range(0, len(seeds), batch):
        scenes = [sample_scene(seed) for seed in seeds[start : start + batch]]
        with torch.inference_mode():
            captions = captioner([web_image(scene, pixels) for scene in scenes])
        for scene, (text, ended) in zip(scenes, captions, strict=True):
            score.add(text, scene)
            exact += text == long_text(scene, writer)
            unfinished += not ended
    return {
        "captioner": folder.name,
        "scenes": score.texts,
        "facts_precision": round(score.precision, 5),
        "facts_recall": round(score.recall, 5),
        "texts_exactly_right": round(exact / score.texts, 5),
        "texts_without_end": unfinished,
        "seconds": round(time.monotonic() - started, 1),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folder", type=Path, help="folder of the captioner, for example synthetic/checkpoints/tiny-llava"
    )
    parser.add_argument(
        "--scenes", type=int, default=500, help="number of scenes of the split captioner_test (default: %(default)s)"
    )
    parser.add_argument(
        "--pixels", type=int, default=96, help="width and height of the pictures (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    if not (options.folder / "config.json").is_file():
        parser.error(f"{options.folder} has no config.json: give the folder of a captioner")
    if not 0 < options.scenes <= len(SPLITS["captioner_test"]):
        parser.error(f"--scenes must be between 1 and {len(SPLITS['captioner_test'])}")
    print(json.dumps(measure(options.folder, SPLITS["captioner_test"][: options.scenes], options.pixels)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

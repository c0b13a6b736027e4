"""How right a tiny captioner is: precision and recall of its facts on unseen scenes.

python -m lotlip_data.synthetic.measure_captioners world/checkpoints/tiny-llava --scenes 500
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
    """The scene's picture after a JPEG of quality 95, as a captioner meets it."""
    buffer = io.BytesIO()
    render(scene, pixels).save(buffer, "JPEG", quality=95)
    return Image.open(buffer).convert("RGB")


def measure(folder: Path, seeds: Sequence[int], pixels: int = 96, batch: int = 50) -> dict[str, Any]:
    """Caption the scenes of these seeds greedily in float32 and score facts; counts texts right word for word too."""
    import torch

    from lotlip_data.synthetic.recipes.export import Captioner

    torch.set_num_threads(1)  # for models this small a second thread only waits, for minutes on a busy machine
    captioner = Captioner(folder)
    writer = folder.name.removeprefix("tiny-")
    if writer not in WRITERS:
        raise ValueError(
            f"{folder}: the folder's name must be tiny-<writer>, a writer being one of {', '.join(WRITERS)}"
        )
    score, exact, unended, began = FactScore(), 0, 0, time.monotonic()
    for start in range(0, len(seeds), batch):
        scenes = [sample_scene(seed) for seed in seeds[start : start + batch]]
        with torch.inference_mode():
            answers = captioner([web_image(scene, pixels) for scene in scenes])
        for scene, (text, ended) in zip(scenes, answers, strict=True):
            score.add(text, scene)
            exact += text == long_text(scene, writer)
            unended += not ended
    return {
        "captioner": folder.name,
        "scenes": score.texts,
        "facts_precision": round(score.precision, 5),
        "facts_recall": round(score.recall, 5),
        "texts_exactly_right": round(exact / score.texts, 5),
        "texts_without_end": unended,
        "seconds": round(time.monotonic() - began, 1),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a captioner's folder, e.g. world/checkpoints/tiny-llava")
    parser.add_argument("--scenes", type=int, default=500, help="how many scenes of the split captioner_test")
    parser.add_argument("--pixels", type=int, default=96, help="side of the pictures shown")
    options = parser.parse_args(arguments)
    if not (options.folder / "config.json").is_file():
        parser.error(f"{options.folder} holds no config.json: give a captioner's folder")
    if not 0 < options.scenes <= len(SPLITS["captioner_test"]):
        parser.error(f"--scenes must be between 1 and {len(SPLITS['captioner_test'])}")
    print(json.dumps(measure(options.folder, SPLITS["captioner_test"][: options.scenes], options.pixels)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

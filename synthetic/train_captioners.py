"""Train the three tiny captioners on the synthetic scenes and save them in the layout of the Hugging Face Hub.

    python -m lotlip_data.synthetic.train_captioners --out synthetic/checkpoints

Training is seeded and runs in two parallel processes with one thread each. Each captioner is measured when it is saved.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from lotlip_data.synthetic.scenes import SPLITS

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import CLIPVisionModel

    from lotlip_data.synthetic.recipes.perception import Pictures

SCENES_PER_TASK = 20_000  # tasks share no scenes
CHECKPOINTS = Path(__file__).parent / "checkpoints"


def train_tower() -> dict[str, Tensor]:
    """Train the vision tower from which both LLaVAs start; returns its state dict."""
    from lotlip_data.synthetic.recipes import llava

    cpu_start = time.process_time()
    pictures = _set_up_task(part=0)
    tower = llava.new_tower()
    llava.train_tower("CLIP tower", tower, pictures, llava.TOWER_SCHEDULE, seed=1)
    print(f"CLIP tower: {time.process_time() - cpu_start:.0f} s of CPU time", flush=True)
    return tower.state_dict()


def train_llava(out: Path, tower_state: dict[str, Tensor]) -> str:
    """Train tiny-llava on the tower as it is; returns its measurement as JSON."""
    from lotlip_data.synthetic.recipes import llava

    cpu_start = time.process_time()
    pictures = _set_up_task(part=1)
    tower = llava.new_tower()
    tower.load_state_dict(tower_state)
    return _train_and_save_llava("llava", tower, pictures, out, cpu_start)


def train_sharegpt4v(out: Path, tower_state: dict[str, Tensor]) -> str:
    """Train tiny-sharegpt4v on a fine-tuned copy of the tower; returns its measurement as JSON."""
    from lotlip_data.synthetic.recipes import llava

    cpu_start = time.process_time()
    pictures = _set_up_task(part=2)
    tower = llava.new_tower()
    tower.load_state_dict(tower_state)
    llava.train_tower("tiny-sharegpt4v tower", tower, pictures, llava.TUNING_SCHEDULE, seed=1)
    return _train_and_save_llava("sharegpt4v", tower, pictures, out, cpu_start)


def train_instructblip(out: Path) -> str:
    """Train the tower, Q-Former and language model of tiny-instructblip; returns its measurement as JSON."""
    from lotlip_data.synthetic.recipes import export, instructblip
    from lotlip_data.synthetic.recipes.language import PROMPTS

    cpu_start = time.process_time()
    pictures = _set_up_task(part=3)
    model, tokenizer, qformer_tokenizer = instructblip.train_captioner(pictures, seed=1)
    folder = out / "tiny-instructblip"
    export.save_instructblip(model, tokenizer, qformer_tokenizer, PROMPTS["instructblip"], folder)
    return _measured(folder, cpu_start)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=CHECKPOINTS, help=f"folder for the checkpoints (default: {CHECKPOINTS})"
    )
    out: Path = parser.parse_args(arguments).out
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with ProcessPoolExecutor(max_workers=2, mp_context=get_context("spawn")) as pool:
        blip = pool.submit(train_instructblip, out)
        tower = pool.submit(train_tower).result()
        sharegpt4v = pool.submit(train_sharegpt4v, out, tower)  # the longest first, so that both processes end together
        llava = pool.submit(train_llava, out, tower)
        for task in (blip, llava, sharegpt4v):
            print(task.result(), flush=True)
    print(f"three captioners trained in {(time.monotonic() - started) / 60:.1f} minutes; saved in {out}")
    return 0


def _set_up_task(part: int) -> Pictures:
    """Seed the process and draw the training pictures of the task."""
    import torch

    from lotlip_data.synthetic.recipes.perception import draw_pictures

    torch.set_num_threads(1)  # with two threads per process the processes slow each other down
    torch.manual_seed(part)
    return draw_pictures(SPLITS["captioner_train"][part * SCENES_PER_TASK : (part + 1) * SCENES_PER_TASK])


def _train_and_save_llava(writer: str, tower: CLIPVisionModel, pictures: Pictures, out: Path, cpu_start: float) -> str:
    from lotlip_data.synthetic.recipes import export, llava
    from lotlip_data.synthetic.recipes.language import PROMPTS

    model, tokenizer = llava.train_captioner(writer, tower, pictures, llava.LANGUAGE_SCHEDULE, seed=2)
    folder = out / f"tiny-{writer}"
    export.save_llava(model, tokenizer, PROMPTS[writer], folder)
    return _measured(folder, cpu_start)


def _measured(folder: Path, cpu_start: float) -> str:
    """The measurement as JSON, with the CPU seconds of the captioner's training."""
    from lotlip_data.synthetic.measure_captioners import measure

    cpu_seconds = round(time.process_time() - cpu_start)
    result = measure(folder, SPLITS["captioner_test"][:500])
    return json.dumps({**result, "training_processor_seconds": cpu_seconds})


if __name__ == "__main__":
    sys.exit(main())

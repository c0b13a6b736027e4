"""Train the three tiny captioners on the offline world and save them in the hub's layout.

    python -m lotlip_data.synthetic.train_captioners --out world/checkpoints

Two processes side by side, one thread each; seeded. Each captioner is measured as soon as it is saved.
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

SCENES = 20_000  # each task has scenes of its own
CHECKPOINTS = Path(__file__).parent / "checkpoints"


def train_tower() -> dict[str, Tensor]:
    """The vision tower from which both LLaVAs start."""
    from lotlip_data.synthetic.recipes import llava

    began = time.process_time()
    pictures = _begin(part=0)
    tower = llava.new_tower()
    llava.teach_tower("CLIP tower", tower, pictures, llava.TOWER, seed=1)
    print(f"CLIP tower: {time.process_time() - began:.0f} s of processor time", flush=True)
    return tower.state_dict()


def train_llava(out: Path, tower_state: dict[str, Tensor]) -> str:
    """tiny-llava, on the tower as it is."""
    from lotlip_data.synthetic.recipes import llava

    began = time.process_time()
    pictures = _begin(part=1)
    tower = llava.new_tower()
    tower.load_state_dict(tower_state)
    return _teach_and_save_llava("llava", tower, pictures, out, began)


def train_sharegpt4v(out: Path, tower_state: dict[str, Tensor]) -> str:
    """tiny-sharegpt4v, on a copy of the tower that is tuned further on scenes of its own."""
    from lotlip_data.synthetic.recipes import llava

    began = time.process_time()
    pictures = _begin(part=2)
    tower = llava.new_tower()
    tower.load_state_dict(tower_state)
    llava.teach_tower("tiny-sharegpt4v tower", tower, pictures, llava.TUNING, seed=1)
    return _teach_and_save_llava("sharegpt4v", tower, pictures, out, began)


def train_instructblip(out: Path) -> str:
    """tiny-instructblip: tower, Q-Former, language model."""
    from lotlip_data.synthetic.recipes import export, instructblip
    from lotlip_data.synthetic.recipes.language import PROMPTS

    began = time.process_time()
    pictures = _begin(part=3)
    model, tokenizer, qformer_tokenizer = instructblip.teach_instructblip(pictures, seed=1)
    folder = out / "tiny-instructblip"
    export.save_instructblip(model, tokenizer, qformer_tokenizer, PROMPTS["instructblip"], folder)
    return _measured(folder, began)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=CHECKPOINTS, help=f"where to write them (default: {CHECKPOINTS})")
    out: Path = parser.parse_args(arguments).out
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with ProcessPoolExecutor(max_workers=2, mp_context=get_context("spawn")) as pool:
        blip = pool.submit(train_instructblip, out)
        tower = pool.submit(train_tower).result()
        sharegpt4v = pool.submit(train_sharegpt4v, out, tower)  # the longest first, so both processes end together
        llava = pool.submit(train_llava, out, tower)
        for task in (blip, llava, sharegpt4v):
            print(task.result(), flush=True)
    print(f"all three in {(time.monotonic() - began) / 60:.1f} minutes, in {out}")
    return 0


def _begin(part: int) -> Pictures:
    import torch

    from lotlip_data.synthetic.recipes.perception import draw_pictures

    torch.set_num_threads(1)  # two threads a process stall each other
    torch.manual_seed(part)
    return draw_pictures(SPLITS["captioner_train"][part * SCENES : (part + 1) * SCENES])


def _teach_and_save_llava(writer: str, tower: CLIPVisionModel, pictures: Pictures, out: Path, began: float) -> str:
    from lotlip_data.synthetic.recipes import export, llava
    from lotlip_data.synthetic.recipes.language import PROMPTS

    model, tokenizer = llava.teach_llava(writer, tower, pictures, llava.WRITING, seed=2)
    folder = out / f"tiny-{writer}"
    export.save_llava(model, tokenizer, PROMPTS[writer], folder)
    return _measured(folder, began)


def _measured(folder: Path, began: float) -> str:
    """The measurement as JSON, and the processor seconds of its task: the cost where nobody else wants the core."""
    from lotlip_data.synthetic.measure_captioners import measure

    processor_seconds = round(time.process_time() - began)
    result = measure(folder, SPLITS["captioner_test"][:500])
    return json.dumps({**result, "training_processor_seconds": processor_seconds})


if __name__ == "__main__":
    sys.exit(main())

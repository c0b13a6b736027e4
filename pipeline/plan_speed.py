"""How fast an actor is where nobody measured or gave it: as the run's were, else by arithmetic alone.

reckoned images a second = GPUs × TFLOP/s × MFU / (2 × parameters × (image + prompt + caption tokens))
"""

from lotlip_data.captioners.sizing import CAPTION_TOKENS, MODELS, Sizes
from lotlip_data.manifests.layout import Run
from lotlip_data.pipeline import ledger
from lotlip_data.pipeline.choice import Chosen
from lotlip_data.pipeline.hardware import Hardware
from lotlip_data.pipeline.plan_time import Speed


def of_run(one: Chosen, run: Run) -> Speed | None:
    """The ledger's; None where it has none."""
    done = ledger.effort(ledger.recorded(run.caption_ledger(one.config.name)).values())
    if not done.images_per_s:
        return None
    return Speed(done.images_per_s, f"the run's, of {done.images:,} images", on_cpu=not done.gpu_seconds)


def of_size(one: Chosen, sizes: Sizes | None, hardware: Hardware, gpus: float, caption: float) -> Speed:
    """Reckoned; without a number where nothing is known of the model, or an actor has no GPU."""
    if sizes is None or not gpus:
        what = "the model" if gpus else "actors without a GPU"
        return Speed(None, f"unknown: nothing is known of {what}; give --speed")
    used = gpus - idle_gpus(one, gpus)
    return Speed(reckoned(sizes, used, hardware, caption), "reckoned from the model's size")


def idle_gpus(one: Chosen, gpus: float) -> float:
    """Of those of an actor: a copy of a model of ours is on `tensor_parallel_size` of them, and never on more."""
    return max(0.0, gpus - one.config.tensor_parallel_size) if one.config.kind in MODELS else 0.0


def reckoned(sizes: Sizes, gpus: float, hardware: Hardware, caption: float = CAPTION_TOKENS) -> float:
    """Images a second of an actor by arithmetic alone: two operations a parameter and token."""
    return gpus * hardware.tflops * 1e12 * hardware.mfu / (2 * sizes.parameters * sizes.tokens(caption))

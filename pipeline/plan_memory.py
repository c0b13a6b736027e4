"""How many captions an actor's GPUs have room for, by the captioner's pool."""

from lotlip_data.captioners.base import Resources
from lotlip_data.captioners.sizing import WORKING_GIB, Sizes, sequences
from lotlip_data.pipeline.choice import Chosen


def captions_at_a_time(
    one: Chosen, sizes: Sizes, gpus: float, gpu_gib: float, caption: float
) -> tuple[int, str] | None:
    """Captions of so many tokens, and what their number assumes. None where no vLLM of ours has a GPU.

    gpus: of an actor. One that has a part of a GPU may use no larger part of its memory, whatever
    `gpu_memory_utilization` is: others have the rest.
    """
    if not gpus or one.pool.engine == "transformers":
        return None
    given, spread = Resources(**one.pool.engine_options), one.config.tensor_parallel_size
    share = min(given.gpu_memory_utilization, gpus / spread)
    fit = sequences(sizes, gpu_gib, share, spread, given.kv_cache_gib, caption)
    room = f"a cache of {spread} × {given.kv_cache_gib or 0:g} GiB (kv_cache_gib)"
    if given.kv_cache_gib is None:
        why = "gpu_memory_utilization" if share == given.gpu_memory_utilization else "num_gpus leaves no more"
        room = (
            f"{spread} × ({share:g} ({why}) of {gpu_gib:g} GiB − {WORKING_GIB:g} GiB of working memory) "
            f"− {sizes.weights_gib:.1f} GiB of weights in 16 bit"
        )
    each = (
        f"{sizes.kv_bytes_a_token / 2**20:.3g} MiB of cache a token in 16 bit, {sizes.tokens(caption):,.0f} tokens each"
    )
    return fit, f"memory: {room}; {each}"

"""The side `ours`: the actor of a caption pool in Ray, from the tar to the committed Parquet file of captions."""

import pyarrow.parquet as pq
from serve import Job, Results, serve

from lotlip_data.captioners.base import CaptionerConfig
from lotlip_data.manifests import storage
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core.ray_cluster import LOCAL_OBJECT_STORE_BYTES
from lotlip_data.pipeline.recaptioning.actor import CaptionActor
from lotlip_data.pipeline.recaptioning.actor_pool import UNITS_PER_ACTOR
from lotlip_data.pipeline.recaptioning.config import PoolSettings


def start(job: Job):  # type: ignore[no-untyped-def]
    import ray

    config, run = CaptionerConfig.from_dict(job["captioner"]), Run.at(job["run"])
    ray.init("local", include_dashboard=False, log_to_driver=False, object_store_memory=LOCAL_OBJECT_STORE_BYTES)
    options = {name: job[name] for name in ("max_num_seqs", "kv_cache_gib")}
    settings = PoolSettings(engine="vllm", engine_options=options | {"cache_dir": job["scratch"]})
    actor = ray.remote(CaptionActor).options(num_cpus=1, max_concurrency=2 * UNITS_PER_ACTOR)
    actor = actor.remote(run.url, config, settings, [config.name])
    ray.get(actor.start.remote())

    def results() -> Results:
        captions: Results = {}
        for shard in range(len(job["tars"])):
            for row in pq.read_table(run.caption_shard(config.name, shard)).to_pylist():
                assert row["error"] is None, row
                captions[row["key"]] = (row["text"], row["tokens"])
        storage.remove(run.captioner(config.name))
        return captions

    def caption(number: int):  # type: ignore[no-untyped-def]
        units = list(range(len(job["tars"])))
        running = [actor.caption.remote(units.pop(0), [config.name]) for _ in range(min(UNITS_PER_ACTOR, len(units)))]
        while running:
            finished, running = ray.wait(running)
            ray.get(finished)
            if units:
                running.append(actor.caption.remote(units.pop(0), [config.name]))
        return results

    return caption


if __name__ == "__main__":
    serve(start)

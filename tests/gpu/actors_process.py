"""Actors of a pool on a Ray of this machine, in a process of their own.

As a program, `python -m tests.gpu.actors_process RUN CAPTIONER COUNT GPUS` starts COUNT actors and prints their start
reports as JSON, each with some environment variables of its actor. CAPTIONER is an entry of a manifest. GPUS is the
number of logical GPUs of Ray; `auto` are those that it finds.
"""

import json
import os
import sys
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

START_SECONDS = 600.0


def _environment(actor: Any, names: tuple[str, ...]) -> dict[str, str | None]:
    return {name: os.environ.get(name) for name in names}


def main() -> None:
    import ray

    from lotlip_data.manifests.run_layout import Run
    from lotlip_data.pipeline.core.ray_cluster import cluster, start_local
    from lotlip_data.pipeline.recaptioning.actor_pool import ActorPool, create_actor, end_actor
    from lotlip_data.pipeline.recaptioning.claims import claim_settings
    from lotlip_data.pipeline.recaptioning.config import resolve_captioners

    url, captioner, count, gpus = sys.argv[1:]
    run, (job,) = Run.at(url), resolve_captioners([json.loads(captioner)])
    if gpus != "auto":
        start_local(num_cpus=4, num_gpus=int(gpus))
    with cluster() if gpus == "auto" else nullcontext():
        claim_settings(run, job.config)
        pool = ActorPool(run, job.config, job.pool, {0: (job.config.name,)})
        actors: list[Any] = [create_actor(pool, job.pool.num_cpus) for _ in range(int(count))]
        reports = ray.get([actor.start.remote() for actor in actors], timeout=START_SECONDS)
        names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
        variables = ray.get([actor.__ray_call__.remote(_environment, names) for actor in actors])
        both = zip(reports, variables, strict=True)
        print(json.dumps([{**asdict(report), "environment": values} for report, values in both]))
        for actor in actors:
            end_actor(actor)
    ray.shutdown()


if __name__ == "__main__":
    main()

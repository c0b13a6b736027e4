"""The sides of `one_pass.py` and `existing.py`: the worker of a captioner, for all its texts or for one after another.

The engine of the passes is loaded as that of a captioner with one text, so vLLM has no prefix cache there.
"""

import asyncio

import pyarrow.parquet as pq
from serve import Job, Results, serve

from lotlip_data.captioners.base import CaptionerConfig
from lotlip_data.captioners.registry import load_engine
from lotlip_data.manifests import storage
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.recaptioning.worker import CaptionWorker


def start(job: Job):  # type: ignore[no-untyped-def]
    config, run = CaptionerConfig.from_dict(job["captioner"]), Run.at(job["run"])
    names = [text.name for text in config.texts]
    passes = [names] if job["one_pass"] else [[name] for name in names]
    longest = max(config.prompts, key=lambda key: config.prompts[key].max_new_tokens)
    loaded = config if job["one_pass"] else config.replace(prompts={longest: config.prompts[longest]})
    engine = load_engine(loaded, job["engine"], **job["options"])
    loop = asyncio.new_event_loop()  # of all rounds: an engine keeps the one of its first request

    def results() -> Results:
        captions: Results = {}
        for name in names:
            for shard in range(len(job["tars"])):
                for row in pq.read_table(run.caption_shard(name, shard)).to_pylist():
                    assert row["error"] is None, row
                    captions[f"{name}/{row[job['identity']]}"] = (row["text"], row["tokens"])
            storage.remove(run.captioner(name))
        return captions

    async def caption_all() -> None:
        worker = CaptionWorker(run, config, engine)
        for wanted in passes:
            await asyncio.gather(*(worker.caption_shard(shard, wanted) for shard in range(len(job["tars"]))))

    def caption(number: int):  # type: ignore[no-untyped-def]
        loop.run_until_complete(caption_all())
        return results

    return caption


if __name__ == "__main__":
    serve(start)

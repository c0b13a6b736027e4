"""The sides `ray_data_llm*`: ray.data.llm's vLLM processor, from the tar to Parquet.

They run in their own environment, which ray_data_llm_env.sh makes. One execution of Ray Data lasts as long as this
process, so that the engine starts only once: a task that reads a tar waits until its round starts. A round ends when
Parquet files with all its captions are written.

job["stages"] selects the stages:

- `default`, as in ray.data.llm's guide to captioning images: messages with the image; stages that decode the image,
  apply the chat template, tokenize and detokenize; 16 rows per batch.
- `multimodal`: vLLM tokenizes and detokenizes; 64 rows per batch, the number of captions that vLLM writes at a time.
- `engine`: the prompt and the decoded image go directly to the engine's stage, in batches of the same size.

The number of concurrent batches is ray.data.llm's default, 8.
"""

import base64
import functools
import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from images import read_tar
from serve import Job, Results, serve

MAX_ROUNDS = 64
Row = dict[str, Any]


def start(job: Job):  # type: ignore[no-untyped-def]
    import ray

    scratch = Path(job["scratch"])
    scratch.mkdir(parents=True)
    environment = {"env_vars": {"OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}}
    # More logical CPUs than the machine has, because the stages would otherwise wait for each other.
    ray.init("local", num_cpus=8, include_dashboard=False, log_to_driver=False, runtime_env=environment)
    ray.data.DataContext.get_current().enable_progress_bars = False
    tars = [{"round": number, "tar": tar} for number in range(MAX_ROUNDS) for tar in job["tars"]]
    rounds = ray.data.from_items(tars, override_num_blocks=len(tars))
    images = rounds.flat_map(functools.partial(read, scratch), num_cpus=0.01, concurrency=len(job["tars"]))
    captions = processor(job)(images)
    threading.Thread(target=captions.write_parquet, args=(str(scratch / "captions"),), daemon=True).start()
    written: dict[Path, int] = {}

    def caption(number: int):  # type: ignore[no-untyped-def]
        before = set(written)
        (scratch / f"round-{number}").touch()
        while sum(rows for path, rows in written.items() if path not in before) < job["images"]:
            time.sleep(0.005)
            for path in (scratch / "captions").glob("*.parquet"):
                if path not in written and (rows := row_count(path)):
                    written[path] = rows

        def results() -> Results:
            tables = [pq.read_table(path).to_pylist() for path in written if path not in before]
            return {row["key"]: (row["text"].strip(), row["tokens"]) for rows in tables for row in rows}

        return results

    caption(0)()  # the engine starts with the first round
    return lambda number: caption(number + 1)


def processor(job: Job) -> Any:
    """The vLLM processor with the stages of the job."""
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    messages, tokens = job["stages"] != "engine", job["stages"] == "default"
    config = vLLMEngineProcessorConfig(
        model_source=job["checkpoint"],
        engine_kwargs=job["vllm"],
        batch_size=16 if job["stages"] == "default" else job["max_num_seqs"],
        concurrency=1,
        log_engine_metrics=False,
        placement_group_config={"bundle_per_worker": {"CPU": 1}},
        prepare_multimodal_stage={"enabled": messages, "chat_template_content_format": "openai"},
        chat_template_stage=messages,
        tokenize_stage=tokens,
        detokenize_stage=tokens,
    )
    to_request = message_request if messages else prompt_request
    return build_processor(config, preprocess=functools.partial(to_request, job), postprocess=to_caption)


def read(scratch: Path, row: Row) -> Iterator[Row]:
    """Wait for the start of the row's round, then read its tar."""
    while not (scratch / f"round-{row['round']}").exists():
        time.sleep(0.005)
    for key, content in read_tar(row["tar"]):
        yield {"key": key, "jpg": content}


def message_request(job: Job, row: Row) -> Row:
    url = "data:image/jpeg;base64," + base64.b64encode(row["jpg"]).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": job["captioner"]["prompt"]}]
    return {"key": row["key"], "messages": [{"role": "user", "content": content}], "sampling_params": job["sampling"]}


def prompt_request(job: Job, row: Row) -> Row:
    from PIL import Image

    image = Image.open(io.BytesIO(row["jpg"])).convert("RGB")
    request = {"prompt": job["text"], "multimodal_data": {"image": image}, "sampling_params": job["sampling"]}
    return {"key": row["key"]} | request


def to_caption(row: Row) -> Row:
    return {"key": row["key"], "text": row["generated_text"], "tokens": row["num_generated_tokens"]}


def row_count(path: Path) -> int:
    """The number of rows of a Parquet file; 0 if it is not complete yet."""
    import pyarrow as pa

    try:
        return pq.read_metadata(path).num_rows
    except (pa.ArrowInvalid, OSError):
        return 0


if __name__ == "__main__":
    serve(start)

"""ray.data.llm's vLLM processor, from the tar to Parquet; runs in an environment of its own (ray_data_llm_env.sh).

One execution of Ray Data lasts as long as this process, so that its engine, too, is started once: the task that reads a
tar waits until its round is called. A round is over when Parquet files with all of its captions are written.

job["stages"] is `default`, the way its guide to captioning images has it: messages with the image; stages that decode
it, apply the chat template, tokenize and detokenize; 16 rows a batch. Or `multimodal`: vLLM itself does the tokens, and
a batch is 64 rows, as many as vLLM writes at a time. Or `engine`: the prompt and the decoded image go to the engine's
stage, in such batches, and no other stage is there. Its default number of batches in flight, 8, stays.
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
    # More logical CPUs than the machine has: its stages would otherwise wait for each other.
    ray.init("local", num_cpus=8, include_dashboard=False, log_to_driver=False, runtime_env=environment)
    ray.data.DataContext.get_current().enable_progress_bars = False
    tars = [{"round": number, "tar": tar} for number in range(MAX_ROUNDS) for tar in job["tars"]]
    calls = ray.data.from_items(tars, override_num_blocks=len(tars))
    images = calls.flat_map(functools.partial(read, scratch), num_cpus=0.01, concurrency=len(job["tars"]))
    captions = processor(job)(images)
    threading.Thread(target=captions.write_parquet, args=(str(scratch / "captions"),), daemon=True).start()
    written: dict[Path, int] = {}

    def caption(number: int):  # type: ignore[no-untyped-def]
        before = set(written)
        (scratch / f"round-{number}").touch()
        while sum(rows for path, rows in written.items() if path not in before) < job["images"]:
            time.sleep(0.005)
            for path in (scratch / "captions").glob("*.parquet"):
                if path not in written and (rows := rows_of(path)):
                    written[path] = rows

        def results() -> Results:
            fresh = [pq.read_table(path).to_pylist() for path in written if path not in before]
            return {row["key"]: (row["text"].strip(), row["tokens"]) for rows in fresh for row in rows}

        return results

    caption(0)()  # the engine starts with the first round
    return lambda number: caption(number + 1)


def processor(job: Job) -> Any:
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
    ask = asked_by_messages if messages else asked_by_prompt
    return build_processor(config, preprocess=functools.partial(ask, job), postprocess=answered)


def read(scratch: Path, row: Row) -> Iterator[Row]:
    while not (scratch / f"round-{row['round']}").exists():
        time.sleep(0.005)
    for key, content in read_tar(row["tar"]):
        yield {"key": key, "jpg": content}


def asked_by_messages(job: Job, row: Row) -> Row:
    url = "data:image/jpeg;base64," + base64.b64encode(row["jpg"]).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": job["captioner"]["prompt"]}]
    return {"key": row["key"], "messages": [{"role": "user", "content": content}], "sampling_params": job["sampling"]}


def asked_by_prompt(job: Job, row: Row) -> Row:
    from PIL import Image

    image = Image.open(io.BytesIO(row["jpg"])).convert("RGB")
    asked = {"prompt": job["text"], "multimodal_data": {"image": image}, "sampling_params": job["sampling"]}
    return {"key": row["key"]} | asked


def answered(row: Row) -> Row:
    return {"key": row["key"], "text": row["generated_text"], "tokens": row["num_generated_tokens"]}


def rows_of(path: Path) -> int:
    """0 for a file that is still being written."""
    import pyarrow as pa

    try:
        return pq.read_metadata(path).num_rows
    except (pa.ArrowInvalid, OSError):
        return 0


if __name__ == "__main__":
    serve(start)

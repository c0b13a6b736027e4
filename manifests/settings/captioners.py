"""The manifest's `captioners` section: models, prompts and sampling, and the pools of actors that run them.

    captioners:
      - llava                                   # a preset: the published LLaVA-1.5
      - {preset: llava, name: llava-pad, image_fit: pad}
      - {name: mine, kind: llava, model: /models/mine, pool: {max_actors: 8, num_gpus: 1}}
      - {preset: llava, name: both, prompts: {long: Describe the image in detail., title: Give the image a title.}}

`kind` is an open set: another package adds one through an entry point, so `captioners.registry` checks it.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)

from lotlip_data.manifests.settings.base import ListEntry, Settings, SparseSettings
from lotlip_data.manifests.settings.prompt_syntax import RAW_FIELDS, fields_of, possible_prompts
from lotlip_data.manifests.settings.structured import StructuredOutput

CaptionerPreset = Literal[
    "instructblip",
    "llava",
    "sharegpt4v",
    "instructblip-fp8",
    "llava-fp8",
    "sharegpt4v-fp8",
    "qwen3-vl-4b",
    "qwen3-vl-8b",
    "qwen2.5-vl-7b",
    "internvl3-8b",
    "smolvlm2",
    "gemma-3-4b",
    "joycaption",
    "llava-onevision",
    "llava-1.6",
    "tiny-instructblip",
    "tiny-llava",
    "tiny-sharegpt4v",
]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
CacheDtype = Literal["auto", "fp8", "fp8_hopper"]
ImageFit = Literal["checkpoint", "pad", "crop"]
Removal = Literal["reasoning", "preamble", "closing", "markdown"]


def _keep_integer(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """Keep an integer an integer: a captioner's id covers the settings as they are written, and 1 is not 1.0 there."""
    return value if _is_integer(value) and validate(float(value)) is not None else validate(value)


def _allow_integer(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """Keep a label such as 2025 the integer that YAML reads, for the same reason."""
    return value if _is_integer(value) else validate(value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_UNCHANGED = PlainSerializer(lambda value: value)
CaptionerName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]


def _is_no_ending(name: str) -> str:
    if re.fullmatch(r"(.*_)?(sub|flags)", name):
        raise ValueError(f"{name!r}: columns of sub-captions and of flags end like this; choose another name")
    return name


TextName = Annotated[CaptionerName, AfterValidator(_is_no_ending)]
Count = Annotated[int, Field(strict=True, ge=1)]


def preset_name(preset: str) -> str:
    """The name of a captioner that is called after its preset: names have no dot, since files are named after them."""
    return preset.replace(".", "-")


class TextSettings(Settings):
    """Settings that can differ between the texts of one captioner: the prompt, and how its answer is generated."""

    prompt: str = "Describe the image in detail."
    """Instruction to the model. In the place of `{raw}`, `{source}`, `{width}` and other fields, each image gets the
    columns of its own sample."""
    prompt_without_raw: str | None = None
    """Instruction for images without a raw text, if `prompt` has `{raw}`. Default: `prompt` with an empty text."""
    max_field_characters: Annotated[int, Field(strict=True, ge=20)] = 500
    """Largest number of characters that a field of a prompt gets. A longer text is cut between two words."""
    system: str | None = None
    """Kind `vlm` only: the system prompt, which comes before the user's turn in the checkpoint's chat template. It can
    have fields, as `prompt`."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Kind `vlm` only: strings that end a caption, such as `["\\n\\n"]`. They are not part of it."""
    strip: tuple[Removal, ...] | None = None
    """What is removed from a model's output: `reasoning` (`<think>…</think>`), `preamble` ("Sure, here is…"), `closing`
    ("Let me know if…") and `markdown`. Default: `[reasoning]` for kind `vlm`, `[]` for the others. Captions from which
    something was removed have the flag `stripped`."""
    max_new_tokens: Count = 256
    """Largest number of tokens of a caption."""
    min_new_tokens: Annotated[int, Field(strict=True, ge=0)] = 0
    """Least number of tokens of a caption."""
    temperature: Annotated[float, Field(ge=0), WrapValidator(_keep_integer), _UNCHANGED] = 0.0
    """Sampling temperature; 0 is greedy decoding."""
    top_p: Annotated[float, Field(gt=0, le=1), WrapValidator(_keep_integer), _UNCHANGED] = 1.0
    """Nucleus sampling: probability mass that is kept. It has no effect at temperature 0."""
    top_k: Annotated[int, Field(strict=True, ge=0)] = 0
    """Number of most probable tokens that are kept; 0 keeps all. It has no effect at temperature 0."""
    min_p: Annotated[float, Field(ge=0, le=1), WrapValidator(_keep_integer), _UNCHANGED] = 0.0
    """Least probability of a token that is kept, as a share of the largest. It has no effect at temperature 0."""
    repetition_penalty: Annotated[float, Field(gt=0), WrapValidator(_keep_integer), _UNCHANGED] = 1.0
    """Factor against tokens that have occurred already, in the prompt too (InstructBLIP: in the caption only); above 1
    discourages them."""
    seed: Annotated[int, Field(strict=True)] = 0
    """Seed of the sampling. It has no effect at temperature 0."""
    request: Mapping[str, Any] = Field(default_factory=dict)
    """Kind `openai` only: further fields of each request, such as `stop`; null leaves a field out."""

    structured: StructuredOutput | None = None
    """The form that the text must have, and what of it becomes columns of the dataset. It needs engine `vllm`, or an
    endpoint that can enforce it."""

    @field_validator("prompt", "prompt_without_raw")
    @classmethod
    def _has_words(cls, prompt: str | None) -> str | None:
        if prompt is not None and not prompt.strip():
            raise ValueError("is empty; say what the model should describe")
        return prompt

    @field_validator("prompt_without_raw")
    @classmethod
    def _has_no_raw_text(cls, prompt: str | None) -> str | None:
        if RAW_FIELDS.intersection(fields_of(prompt)):
            raise ValueError("is for images without a raw text; leave out {raw} and {raws}")
        return prompt

    @property
    def prompts_of_images(self) -> tuple[str, ...]:
        """The prompts that an image can get, before their fields are filled in."""
        return possible_prompts(self.prompt, self.prompt_without_raw)

    @property
    def instructions(self) -> tuple[str, ...]:
        """All texts of the settings that can have fields: the prompts, and the system prompt if there is one."""
        return (*self.prompts_of_images, *([self.system] if self.system else []))


class TextEntry(TextSettings, ListEntry):
    """One of the texts that a captioner gives an image: its prompt, or its prompt and settings.

    A setting that is not given is the captioner's.
    """

    prompt: str
    """Instruction to the model, with fields as in the captioner's `prompt`."""

    shorthand = "prompt"

    @model_validator(mode="before")
    @classmethod
    def _has_no_settings_of_the_captioner(cls, entry: Any) -> Any:
        for name in entry if isinstance(entry, Mapping) else ():
            if name in CaptionerEntry.model_fields and name not in cls.model_fields:
                raise ValueError(f"`{name}`: holds for all texts of a captioner; set it beside `prompts`")
        return entry


class CaptionerOverrides(TextSettings):
    """Settings of a captioner that decide which text an image gets."""

    name: CaptionerName | None = None
    """Name of the folder of its captions, and of its column in the dataset; with `prompts`, the start of these names.
    """
    kind: Annotated[str, Field(min_length=1)] | None = None
    """Architecture: `vlm` for any vision-language model, `llava`, `sharegpt4v`, `instructblip`, `openai`, or a kind
    that an installed package adds."""
    model: Annotated[str, Field(min_length=1)] | None = None
    """Hub id, local folder, or short name of a checkpoint that comes with the project, such as `tiny-llava`."""
    revision: Annotated[str | None, WrapValidator(_allow_integer), _UNCHANGED] = None
    """Revision of the model on the hub. For kind `openai`: a label of your own for what the endpoint serves."""
    template: str | None = None
    """Text around the prompt, with `{prompt}` and `<image>` in it. Default: for kinds `llava` and `vlm` the
    checkpoint's chat template, if it has one, else the template of the kind."""
    image_fit: ImageFit = "checkpoint"
    """How an image that is not square becomes square. `checkpoint`: as the checkpoint's image processor does it. `pad`:
    padded in the processor's mean colour, as LLaVA-1.5 and ShareGPT4V were trained. `crop`: its centre."""
    chat_template_kwargs: Mapping[str, Any] = Field(default_factory=dict)
    """Kind `vlm` only: variables of the checkpoint's chat template, such as `{enable_thinking: false}`."""
    min_pixels: Count | None = None
    """Kind `vlm` only: smallest number of pixels of an image that the model reads; a smaller image is enlarged. For
    models whose image processor has such a limit, such as Qwen3-VL."""
    max_pixels: Count | None = None
    """Kind `vlm` only: largest number of pixels of an image that the model reads; a larger image is reduced. For models
    whose image processor has such a limit, such as Qwen3-VL."""
    size: Mapping[str, Count] = Field(default_factory=dict)
    """Kind `vlm` only: replaces entries of the image processor's `size`, such as `{longest_edge: 768}` for SmolVLM2."""
    trust_remote_code: bool = False
    """Kind `vlm` only: whether Python code of the model's repository may run. It runs with all your rights."""
    lora: Annotated[str, Field(min_length=1)] | None = None
    """Kind `vlm` only: hub id or local folder of a LoRA adapter of the model, in PEFT's format."""
    lora_revision: Annotated[str | None, WrapValidator(_allow_integer), _UNCHANGED] = None
    """Revision of the adapter on the hub."""
    dtype: Dtype = "auto"
    """Precision of all weights. `auto`: float32 without a GPU; with one, that of the checkpoint's language model."""
    quantization: str | None = None
    """Quantization as vLLM names it, such as `awq`, `gptq` or `fp8_per_channel`; the checkpoint must fit."""
    kv_cache_dtype: CacheDtype = "auto"
    """Precision of vLLM's attention cache. `auto`: that of the weights. `fp8`: 8 bits. `fp8_hopper`: 8 bits on GPUs of
    compute capability 9.0 (Hopper) or newer, and that of the weights on others."""
    tensor_parallel_size: Count = 1
    """Number of GPUs that one copy of the model is spread over."""
    max_model_len: Count | None = None
    """Largest number of tokens of image, prompt and caption together. Default: exactly what they need."""
    prompts: Mapping[TextName, TextEntry] = Field(default_factory=dict)
    """In place of `prompt`: several texts for each image, by name. Each is a captioner of its own in the run and in the
    dataset, `qwen_long` for the text `long` of the captioner `qwen`, but one engine makes them all and reads each image
    once. A text is its prompt, or a mapping of its prompt and of settings that override the captioner's."""

    @model_validator(mode="after")
    def _has_one_prompt_or_several(self) -> "CaptionerOverrides":
        if self.prompts and "prompt" in self.model_fields_set:
            raise ValueError("`prompt`: has no effect beside `prompts`; move it there and give it a name")
        return self

    @field_validator("template")
    @classmethod
    def _holds_the_prompt(cls, template: str | None) -> str | None:
        if template is not None and "{prompt}" not in template:
            raise ValueError(f"{template!r} must contain {{prompt}}")
        if fields := fields_of(template):
            raise ValueError(f"{template!r} cannot have fields; put {{{fields[0]}}} into `prompt`")
        return template


class CaptionerSettings(CaptionerOverrides):
    """All settings of one captioner."""

    name: CaptionerName
    kind: Annotated[str, Field(min_length=1)]
    model: Annotated[str, Field(min_length=1)]

    @model_validator(mode="after")
    def _leaves_room_for_the_prompt(self) -> "CaptionerSettings":
        if self.prompts:  # whose texts are checked one by one
            return self
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"`min_new_tokens`: {self.min_new_tokens} must not exceed max_new_tokens={self.max_new_tokens}"
            )
        if self.structured is not None and self.min_new_tokens:
            raise ValueError("`min_new_tokens`: a text with `structured` ends where its form ends; leave it out")
        if self.max_model_len is not None and self.max_model_len <= self.max_new_tokens:
            raise ValueError(
                f"`max_model_len`: {self.max_model_len} must exceed max_new_tokens ({self.max_new_tokens}); "
                "leave it out to get what is needed"
            )
        return self


class EngineOptions(SparseSettings):
    """What an engine may use. No option is meant to change a text, so a captioner's id covers none of them."""

    model_config = ConfigDict(hide_input_in_errors=True)  # an endpoint's URL can hold a password by mistake

    batch_size: Annotated[int, Field(ge=1)] | None = None
    """Number of images per forward pass of transformers, and of InstructBLIP's vision half in vLLM. Default: 32 on a
    GPU, or as many captions as fit in its memory if they are fewer; 16 without one."""
    max_num_seqs: Annotated[int, Field(ge=1)] | None = None
    """Number of captions that vLLM generates at a time. Default: as many as fit in the memory of the GPU that is there,
    1,024 at most; 64 without one. Kind `openai`: number of requests in flight (default: 64)."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """vLLM's share of the GPU's memory, at most 1. An actor with a part of a GPU gets at most 0.9 of that part."""
    kv_cache_gib: Annotated[float, Field(gt=0)] | None = None
    """Memory of the attention cache in GiB. Default: what is left of vLLM's share; 0.25 GiB without a GPU."""
    cache_dir: str = "~/.cache/lotlip-data"
    """Folder for a language model that must be extracted from its checkpoint."""
    engine_args: Mapping[str, Any] = Field(default_factory=dict)
    """Further arguments of vLLM's AsyncEngineArgs; they override this project's."""
    endpoint: str | None = None
    """Kind `openai`: base URL of the endpoint, such as `http://host:8000/v1`."""
    api_key_env: str | None = None
    """Kind `openai`: name of the environment variable with the key, where the engine runs. Default: no key is sent."""
    request_seconds: Annotated[float, Field(gt=0)] = 120.0
    """Kind `openai`: time limit of one request in seconds. A request is sent at most three times."""
    outage_seconds: Annotated[float, Field(gt=0)] = 300.0
    """Kind `openai`: seconds without any answer, or with only "too busy", after which the engine gives up."""

    @field_validator("endpoint")
    @classmethod
    def _is_a_url(cls, endpoint: str | None) -> str | None:
        if endpoint is not None and not re.fullmatch(r"https?://[^/@\s]+(/[^@\s]*)?", endpoint):
            raise ValueError("give a URL such as http://host:8000/v1, without a user or password in it")
        return endpoint

    @field_validator("api_key_env")
    @classmethod
    def _is_the_name_of_a_variable(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):
            raise ValueError("give the name of an environment variable, such as MY_API_KEY, not the key")
        return name


class PoolSettings(SparseSettings):
    """How a captioner runs; no setting changes what it writes."""

    min_actors: Annotated[int, Field(ge=1)] = 1
    """Number of actors that the pool gets before any pool gets more."""
    max_actors: Annotated[int, Field(ge=1)] | None = None
    """Largest number of actors. Default: one per `num_gpus` of the cluster, one without GPUs. A larger number makes
    Ray's autoscaler add nodes."""
    num_gpus: Annotated[float, Field(ge=0)] | None = None
    """GPUs that Ray reserves per actor. Default: those that one copy of the model is spread over where the cluster has
    GPUs, else 0."""
    num_cpus: Annotated[float, Field(ge=0)] = 1.0
    """CPUs that Ray reserves per actor."""
    accelerator_type: str | None = None
    """Type of GPU as Ray names it, such as `A100` or `H100`."""
    resources: Mapping[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Custom Ray resources per actor."""
    labels: Mapping[str, str] = Field(default_factory=dict)
    """Labels of the nodes that may hold an actor, such as `{ray.io/market-type: spot}`."""
    concurrency: Annotated[int, Field(ge=1)] | None = None
    """Number of captions in flight in an engine. Default: what the engine recommends."""
    decoders: Annotated[int, Field(ge=1)] | None = None
    """Threads that decode and resize images. Default: four, or the actor's part of the machine's cores if it is
    smaller: the actors on its GPUs share them."""
    read_batch: Annotated[int, Field(ge=1)] | None = None
    """Images that are read at a time; as many again are read ahead. Default: 64 for an engine on a GPU, 128 if it has
    more than 256 captions in hand, 32 without a GPU."""
    part_size: Annotated[int, Field(ge=2)] = 512
    """Largest number of captions of one text per unit that a kill of the actor costs, unless more captions are in
    flight."""
    stall_seconds: Annotated[float, Field(gt=0)] = 600.0
    """Seconds without a caption, with images waiting, after which an engine counts as hung and is replaced."""
    start_seconds: Annotated[float, Field(gt=0)] = 3600.0
    """Seconds for the start of an engine, with the download of its model, after which it counts as hung and is tried
    again in a new process."""
    max_rejected: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Largest share of a shard's images (of 32 at least) that may have a reason instead of a caption, or a caption
    without a word. A shard with more is not committed but reported; 1 commits every shard."""
    engine: str = "auto"
    """`auto` (vLLM where there is a GPU), `vllm`, `transformers`, or another engine of the captioner's kind."""
    engine_options: EngineOptions = EngineOptions()
    """Options of the engine."""

    @model_validator(mode="after")
    def _least_below_most(self) -> "PoolSettings":
        if self.max_actors is not None and self.min_actors > self.max_actors:
            raise ValueError(f"`min_actors`: {self.min_actors} must not exceed max_actors={self.max_actors}")
        return self


class CaptionerEntry(CaptionerOverrides, ListEntry):
    """One captioner of a manifest: a preset with settings that override it, or `name`, `kind` and `model`."""

    preset: CaptionerPreset | None = None
    """Published captioner whose settings are the defaults."""
    pool: PoolSettings | None = None
    """How the captioner runs."""

    shorthand = "preset"
    model_config = ConfigDict(
        json_schema_extra={"anyOf": [{"required": ["preset"]}, {"required": ["name", "kind", "model"]}]}
    )

    @model_validator(mode="after")
    def _is_complete(self) -> "CaptionerEntry":
        missing = [name for name in ("name", "kind", "model") if getattr(self, name) is None]
        if self.preset is None and missing:
            raise ValueError(f"{', '.join(missing)} must be given, or a `preset`")
        return self

    @property
    def label(self) -> str:
        """The captioner's name."""
        return self.name or preset_name(str(self.preset))

    @property
    def text_names(self) -> tuple[str, ...]:
        """The names of its texts: their folders in a run, and their columns in its dataset."""
        return tuple(text_name(self.label, key) for key in self.prompts) or (self.label,)

    @property
    def structured_outputs(self) -> dict[str, StructuredOutput | None]:
        """By name of a text, the form that it must have; None if it has none."""
        if not self.prompts:
            return {self.label: self.structured}
        return {
            text_name(self.label, key): text.structured if "structured" in text.model_fields_set else self.structured
            for key, text in self.prompts.items()
        }

    @property
    def overrides(self) -> dict[str, Any]:
        """The settings that the entry gives, without `preset` and `pool`."""
        return {name: value for name, value in self.explicit.items() if name not in ("preset", "pool")}


def text_name(captioner: str, key: str) -> str:
    """The name of one of a captioner's texts: of its folder and its column.

    Args:
        captioner: Name of the captioner.
        key: The text's name in `prompts`.
    """
    return f"{captioner}_{key}"


def several_texts(entries: Iterable[Any]) -> dict[str, tuple[str, ...]]:
    """By captioner that makes more than one text for each image, the names of these texts.

    Args:
        entries: The entries of a manifest's `captioners`, as JSON has them. Invalid ones are passed over.
    """
    texts = {}
    for entry in entries:
        prompts = entry.get("prompts") if isinstance(entry, Mapping) else None
        if isinstance(prompts, Mapping) and len(prompts) > 1:
            captioner = str(entry.get("name") or entry.get("preset"))
            texts[captioner] = tuple(text_name(captioner, str(key)) for key in prompts)
    return texts


def by_captioner(names: Iterable[str], texts: Mapping[str, Sequence[str]]) -> list[tuple[str | None, list[str]]]:
    """Names with those of one captioner together: each captioner that makes several texts with the names of these.

    Args:
        names: Names of texts. They stay in order; a captioner comes in the place of its first text.
        texts: From `several_texts`.

    Returns:
        A captioner that makes one text is None with its one name.
    """
    owners = {name: captioner for captioner, own in texts.items() for name in own}
    groups: dict[tuple[bool, str], list[str]] = {}
    for name in names:
        groups.setdefault((name in owners, owners.get(name, name)), []).append(name)
    return [(captioner if is_owner else None, own) for (is_owner, captioner), own in groups.items()]


def parse_captioner(entry: str | Mapping[str, Any] | CaptionerEntry) -> CaptionerEntry:
    """One entry of the section. Raises UserError for a wrong setting or value."""
    named = isinstance(entry, Mapping) and isinstance(entry.get("name"), str)
    where = f"captioner {entry['name']!r}" if named and isinstance(entry, Mapping) else "captioner"
    return CaptionerEntry.parse(entry, where)

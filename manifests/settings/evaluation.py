"""The manifest's `evaluate` section: the tasks on which trained models are evaluated, and where their files are.

evaluation_data: /data/eval                 # the files of task NAME are in /data/eval/NAME
evaluate:
  - synthetic                               # unseen synthetic scenes; they are generated, so there are no files
  - urban-1k
  - {task: iiw, data: /data/imageinwords}   # the folder of this task
  - {task: custom, name: products, data: /data/products}   # images and texts of your own
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, model_validator

from lotlip_data.manifests.settings.base import ListEntry, Name

SYNTHETIC: Literal["synthetic"] = "synthetic"
"""The task on unseen synthetic scenes."""
CUSTOM: Literal["custom"] = "custom"
"""The task on images and texts of one's own."""
_FORMER_NAMES = {"world": SYNTHETIC}
"""Name in manifests of earlier releases → name."""

TaskName = Literal[
    "synthetic",
    "dci",
    "iiw",
    "sharegpt4v-1k",
    "sharegpt4v-10k",
    "urban-1k",
    "docci",
    "mscoco",
    "flickr30k",
    "mscoco-fg",
    "flickr30k-fg",
    "imagenet",
    "sdci",
    "fg-ovd",
    "fg-ovd-attributes",
    "sugarcrepe",
    "sugarcrepe-pp",
    "custom",
]


def current_task_name(name: Any) -> Any:
    """The name of a task for one that an older manifest or command may have; anything else as it is."""
    return _FORMER_NAMES.get(name, name) if isinstance(name, str) else name


class EvaluationEntry(ListEntry):
    """One task on which every trained model is evaluated."""

    task: Annotated[TaskName, BeforeValidator(current_task_name, json_schema_input_type=TaskName | Literal["world"])]
    """Name of the task."""
    data: str | None = None
    """Folder of the task's files: a path or fsspec URL; a relative path starts at the manifest's folder. Default:
    the folder of the task's name in `evaluation_data`. For `custom`, it may also be a table."""
    name: Name | None = None
    """Name of a `custom` set in results, if there are several of them."""

    shorthand = "task"

    @property
    def label(self) -> str:
        """The name of the task in results."""
        return f"{self.task}-{self.name}" if self.name else self.task

    @model_validator(mode="after")
    def _only_own_sets_have_names(self) -> "EvaluationEntry":
        if self.name and self.task != CUSTOM:
            raise ValueError(f"`name`: the task {self.task} has a name already; only {CUSTOM} takes one")
        return self

"""What an evaluation task is, and a record of its files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from lotlip_data.training.eval_tasks.files import Folder

Kind = Literal["long", "short", "classification"]


@dataclass(frozen=True)
class Record:
    """One image of a task: where it may lie (the first that exists is taken), and its texts or its class."""

    places: tuple[str, ...]
    source: str
    """The file, and where in it, that says so."""
    texts: tuple[str, ...] = ()
    label: int = -1
    substitutes: tuple[str, ...] = ()
    """Places under another name than the record's, which come last; they are told."""


@dataclass(frozen=True)
class Task:
    """A published evaluation set. `row` is its row of the paper's Table 1: sub-captions and tokens a text."""

    name: str
    title: str
    kind: Kind
    images: int
    texts_an_image: int
    where: str
    read: Callable[[Folder], Iterator[Record]]
    row: tuple[float, float] | None = None
    classes: Callable[[Folder], tuple[Sequence[str], Sequence[str]]] | None = None
    """Names of the classes in the order of their labels, and templates with "{}". All have equally many images."""
    checksums: Mapping[str, str] = field(default_factory=dict)
    """Of those of its files and archives that are known, "sha256:…" or "md5:…"; archives need not be there."""
    distinct: bool = True
    """Whether every record has an image of its own, as published."""

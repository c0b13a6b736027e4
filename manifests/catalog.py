"""The published sources and the scales made of them, from the YAML files in `manifests/sources/`.

The lists themselves do not come with the project: each source says where they can be had.
"""

from functools import cache
from importlib import resources
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict

from lotlip_data.manifests.settings.messages import unknown_name

SourceName = Literal["cc3m", "cc12m", "yfcc15m", "laion", "coyo"]
SOURCES: tuple[str, ...] = get_args(SourceName)


class Published(BaseModel):
    """A published source: where its list can be had, and how that is read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    title: str
    homepage: str
    licence: str
    obtain: str
    """Which files, and where from."""
    rows: int
    """Of the published list."""
    images: int
    """Table 6 of the paper: those that its authors had."""
    raw_tokens: float
    """Table 6: BERT tokens a raw text."""
    ours: str | None = None
    """What is this project's choice, where the paper does not say."""
    source: dict[str, Any]
    """The settings of a manifest's source that `use` brings."""


@cache
def published(name: str) -> Published:
    """The source called `name`. Raises ValueError, listing them, where there is none."""
    if name not in SOURCES:
        raise ValueError(f"`use`: {unknown_name(name, SOURCES)}")
    return Published(name=name, **_read(name))


@cache
def scales() -> dict[str, tuple[str, ...]]:
    """From a scale (`3M`, `12M`, `30M`, `100M`) to the names of its sources."""
    return {scale: tuple(names) for scale, names in _read("scales").items()}


def sources_of(scale: Any, files: Any) -> list[dict[str, Any]]:
    """The `sources` of a manifest that has `scale`, and `files` by source: paths, or all settings of a source.

    Raises ValueError where the scale is unknown, or the files are not those of exactly its sources.
    """
    if scale not in scales():
        raise ValueError(f"`scale`: {unknown_name(scale, scales())}")
    names = scales()[scale]
    given = files if isinstance(files, dict) else {}
    if missing := [name for name in names if name not in given]:
        where = "; ".join(f"{name}: {published(name).obtain}" for name in missing)
        raise ValueError(
            f"`files`: scale {scale} is made of {', '.join(names)}; give each of them its list, as in "
            f"`files: {{{missing[0]}: [PATH]}}`. Missing are {where}"
        )
    if foreign := sorted(str(name) for name in set(given) - set(names)):
        raise ValueError(f"`files`: {', '.join(foreign)} is not part of scale {scale} ({', '.join(names)})")
    # A list with columns of its own is a mapping of the settings that say so.
    return [
        {"use": name} | (given[name] if isinstance(given[name], dict) else {"files": given[name]}) for name in names
    ]


def _read(name: str) -> dict[str, Any]:
    text = (resources.files("lotlip_data.manifests") / "sources" / f"{name}.yaml").read_text(encoding="utf-8")
    content: dict[str, Any] = yaml.safe_load(text)
    return content

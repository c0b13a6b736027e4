"""The published sources and the paper's scales, from the YAML files beside this module.

The lists themselves are not part of the project. Each source says where to get its list.
"""

from functools import cache
from importlib import resources
from typing import Any, Literal, get_args

import yaml

from lotlip_data.manifests.settings.base import Settings
from lotlip_data.manifests.settings.messages import unknown_name

SourceName = Literal[
    "cc3m",
    "cc12m",
    "yfcc15m",
    "laion",
    "coyo",
    "dreamlip-cc3m",
    "dreamlip-cc12m",
    "dreamlip-yfcc15m",
    "recap-long-laion",
    "recap-long-coyo",
]
SOURCES: tuple[str, ...] = get_args(SourceName)


class Published(Settings):
    """A published source: where to get its list, and how the list is read."""

    name: str
    title: str
    homepage: str
    licence: str
    obtain: str
    """Which files to get, and where."""
    rows: int | None = None
    """Number of rows of the published list; None if it is not known to this project."""
    images: int
    """Number of images that the paper's authors had (Table 6)."""
    raw_tokens: float
    """BERT tokens per raw text (Table 6)."""
    ours: str | None = None
    """Choices of this project where the paper gives no details."""
    source: dict[str, Any]
    """Settings of a manifest's source that `use` sets."""


@cache
def published(name: str) -> Published:
    """The published source `name`. Raises ValueError, with the known names, for an unknown one."""
    if name not in SOURCES:
        raise ValueError(f"`use`: {unknown_name(name, SOURCES)}")
    return Published(name=name, **_read(name))


@cache
def scales() -> dict[str, tuple[str, ...]]:
    """Scale (such as `3M`, or `3M-recaptioned` for lists that carry captions) → names of its sources."""
    return {scale: tuple(names) for scale, names in _read("scales").items()}


def sources_of(scale: Any, files: Any) -> list[dict[str, Any]]:
    """The `sources` of a manifest with a scale.

    Args:
        scale: The manifest's `scale`.
        files: The manifest's `files`: source → path, list of paths, or settings of a source.

    Raises:
        ValueError: If the scale is unknown, or `files` does not name exactly the sources of the scale.
    """
    if scale not in scales():
        raise ValueError(f"`scale`: {unknown_name(scale, scales())}")
    names = scales()[scale]
    by_source = files if isinstance(files, dict) else {}
    if missing := [name for name in names if name not in by_source]:
        where = "; ".join(f"{name}: {published(name).obtain}" for name in missing)
        raise ValueError(
            f"`files`: scale {scale} consists of {', '.join(names)}; give the list of each, as in "
            f"`files: {{{missing[0]}: [PATH]}}`. Missing: {where}"
        )
    if foreign := sorted(str(name) for name in set(by_source) - set(names)):
        raise ValueError(f"`files`: {', '.join(foreign)} is not part of scale {scale} ({', '.join(names)})")
    settings = {name: own if isinstance(own, dict) else {"files": own} for name, own in by_source.items()}
    return [{"use": name} | settings[name] for name in names]


def _read(name: str) -> dict[str, Any]:
    text = (resources.files("lotlip_data.manifests.sources") / f"{name}.yaml").read_text(encoding="utf-8")
    content: dict[str, Any] = yaml.safe_load(text)
    return content

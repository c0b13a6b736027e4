"""What the project knows of published sources, for people and scripts."""

from typing import Any

from lotlip_data.manifests.catalogue import SOURCES, Published, published, scales


def figures() -> dict[str, Any]:
    """By source and by scale; a scale's `images` are the paper's."""
    known = {name: published(name) for name in SOURCES}
    return {
        "sources": {name: one.model_dump(exclude={"name"}) for name, one in known.items()},
        "scales": {
            scale: {"sources": list(names), "images": sum(known[name].images for name in names)}
            for scale, names in scales().items()
        },
    }


def as_lines() -> list[str]:
    """The same as a table, and under it what each source is."""
    known = [published(name) for name in SOURCES]
    lines = [f"{'source':10}{'rows published':>16}{'images (Table 6)':>18}{'tokens a raw text':>19}  format"]
    lines += [
        f"{one.name:10}{one.rows:>16,}{one.images:>18,}{one.raw_tokens:>19.2f}  {one.source.get('format', 'any')}"
        for one in known
    ]
    lines.append("")
    for scale, one in figures()["scales"].items():
        lines.append(f"scale {scale:5}{one['images']:>14,} images: {', '.join(one['sources'])}")
    for source in known:
        lines += ["", *_about(source)]
    return [
        *lines,
        "",
        "The lists do not come with lotlip-data. In a manifest: `use: cc3m` in a source, or `scale: 3M`.",
    ]


def _about(one: Published) -> list[str]:
    read = "; ".join(f"{name}: {value}" for name, value in one.source.items() if name != "format")
    rows = {"obtain": one.obtain, "licence": one.licence, "homepage": one.homepage, "settings": read, "ours": one.ours}
    return [f"{one.name}: {one.title}", *(f"  {name:9} {text}" for name, text in rows.items() if text)]

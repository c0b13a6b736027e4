"""The published sources are those of Table 6 of the paper, and a manifest can use each of them."""

import pytest

from lotlip_data.manifests.manifest import ManifestError, dump, parse
from lotlip_data.manifests.sources.catalog import SOURCES, published, scales

TABLE_6 = {
    "cc3m": (3_018_175, 11.29),
    "cc12m": (10_445_969, 17.48),
    "yfcc15m": (14_772_456, 13.61),
    "laion": (49_677_119, 18.99),
    "coyo": (24_658_004, 17.07),
}


def test_images_and_tokens_are_those_of_table_6() -> None:
    assert {name: (published(name).images, published(name).raw_tokens) for name in SOURCES} == TABLE_6
    assert sum(published(name).images for name in scales()["100M"]) == 102_571_723


@pytest.mark.parametrize("scale", ["3M", "12M", "30M", "100M"])
def test_every_scale_becomes_its_sources_and_reads_back_from_the_frozen_manifest(scale: str) -> None:
    files = ", ".join(f"{name}: [{name}.{published(name).source.get('format', 'csv')}]" for name in scales()[scale])
    manifest = parse(f"name: x\nscale: {scale}\nfiles: {{{files}}}", "m.yaml")
    assert tuple(source.use for source in manifest.sources) == scales()[scale]
    expected = [(published(name).licence, published(name).homepage) for name in scales()[scale]]
    assert [(source.licence, source.homepage) for source in manifest.sources] == expected and all(map(all, expected))
    assert parse(dump(manifest), "frozen") == manifest


def test_a_source_that_the_paper_filtered_says_that_the_filter_is_ours() -> None:
    for name in SOURCES:
        selection = {"filter", "sample"} & set(published(name).source)
        assert (published(name).ours is not None) == bool(selection) == (name in ("laion", "coyo"))


def test_the_settings_of_a_manifest_override_the_published_ones() -> None:
    settings = "{use: laion, files: l.parquet, filter: null, sample: 5, text: caption}"
    (source,) = parse(f"name: x\nsources: [{settings}]", "m").sources
    assert (source.name, source.url, source.text, source.filter, source.sample) == ("laion", "URL", "caption", None, 5)


@pytest.mark.parametrize(
    "settings, columns, form",
    [
        ("files: Train_GCC-training.tsv", ("caption", "url"), "tsv"),
        ("files: list.without.ending", ("caption", "url"), "tsv"),
        ("files: cc3m.parquet", None, "parquet"),  # an edition with names for its columns
        ("files: cc3m.csv, format: csv", None, "csv"),
        ("files: cc3m.tsv, columns: [url, caption]", ("url", "caption"), "tsv"),
    ],
)
def test_another_edition_of_a_list_is_read_with_its_own_header(
    settings: str, columns: tuple[str, ...] | None, form: str
) -> None:
    (source,) = parse(f"name: x\nsources: [{{use: cc3m, {settings}}}]", "m").sources
    assert (source.columns, source.format_of(source.files[0])) == (columns, form)


@pytest.mark.parametrize(
    "text, message",
    [
        ("scale: 3M", r"m.yaml: `files`: scale 3M consists of cc3m; .* cc3m: Train_GCC-training.tsv, from https://"),
        ("scale: 3m\nfiles: {cc3m: a.tsv}", "m.yaml: `scale`: '3m' is unknown; known are 3M, 12M, 30M, 100M"),
        ("scale: 3M\nfiles: {cc3m: a.tsv, coyo: b}", r"m.yaml: `files`: coyo is not part of scale 3M \(cc3m\)"),
        ("scale: 3M\nsources: []", "m.yaml: `scale`: it brings its sources"),
        (
            "sources: [{use: cc2m, files: a.csv}]",
            "m.yaml: `sources.0`: `use`: 'cc2m' is unknown; did you mean .* Known are cc3m",
        ),
        (
            "sources: [{use: coyo, files: a.parquet, filter: 'a b'}]",
            "m.yaml: `sources.0.filter`: 'a b' is not an express",
        ),
        (
            "sources: [{name: x, files: a.csv, hash: {a: sha1}}]",
            "m.yaml: `sources.0.hash.a`: 'sha1' is unknown; .* sha256, md5",
        ),
        (
            "sources: [{name: x, files: a.csv, hash: {a: md5, b: md5}}]",
            "`sources.0.hash`: names two columns of one kind",
        ),
    ],
)
def test_errors_name_the_file_the_field_and_the_fix(text: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        parse(f"name: x\n{text}", "m.yaml")

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
    """A list with captions has the images of the source that it relabels."""
    relabelled = {name: name.rpartition("-")[2] for name in SOURCES}
    figures = {name: (published(name).images, published(name).raw_tokens) for name in SOURCES}
    assert figures == {name: TABLE_6[original] for name, original in relabelled.items()}
    assert set(TABLE_6) < set(SOURCES) and len(SOURCES) == 2 * len(TABLE_6)
    for scale in ("100M", "100M-recaptioned"):
        assert sum(published(name).images for name in scales()[scale]) == 102_571_723


@pytest.mark.parametrize("scale", list(scales()))
def test_every_scale_becomes_its_sources_and_reads_back_from_the_frozen_manifest(scale: str) -> None:
    files = ", ".join(f"{name}: [{name}.{published(name).source.get('format', 'csv')}]" for name in scales()[scale])
    manifest = parse(f"name: x\nscale: {scale}\nfiles: {{{files}}}", "m.yaml")
    assert tuple(source.use for source in manifest.sources) == scales()[scale]
    expected = [(published(name).licence, published(name).homepage) for name in scales()[scale]]
    assert [(source.licence, source.homepage) for source in manifest.sources] == expected and all(map(all, expected))
    assert parse(dump(manifest), "frozen") == manifest
    assert manifest.train[0].preset == scale.partition("-")[0].lower()


def test_the_lists_with_captions_make_the_papers_images_without_a_captioner() -> None:
    for scale, names in scales().items():
        original, _, suffix = scale.partition("-")
        assert suffix in ("", "recaptioned")
        assert tuple(name.rpartition("-")[2] for name in names) == scales()[original]
        files = ", ".join(f"{name}: {name}.csv" for name in names)
        manifest = parse(f"name: x\nscale: {scale}\nfiles: {{{files}}}", "m.yaml")
        imported = ["instructblip", "llava", "sharegpt4v"] if suffix else []
        assert manifest.imported_names == imported
        assert bool(manifest.captioners) == (not imported)


def test_captions_of_a_published_list_can_be_left_out_or_named_also_in_the_runs_own_manifest() -> None:
    for captions, names, captioners in (
        ("null", [], 3),
        ("{}", [], 3),
        ("{mine: column}", ["mine"], 0),
        ("{llava: find}", ["llava"], 0),
    ):
        source = f"{{use: recap-long-coyo, files: c.csv, captions: {captions}}}"
        manifest = parse(f"name: x\nsources: [{source}]", "m")
        assert (manifest.imported_names, len(manifest.captioners)) == (names, captioners)
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
            "sources: [{use: recap-long-coyo, files: c.csv}]\ncaptioners: [llava]",
            "m.yaml: `captioners`: llava has the name of captions that a source carries; give it another `name`",
        ),
        (
            "sources: [{name: x, files: 'a-{0..9}.tar', captions: {mine: a}}]",
            "m.yaml: `sources.0`: `captions` is a setting of lists of URLs only; remove it",
        ),
        (
            "sources: [{name: x, files: a.csv, captions: {mine: find}}]",
            "m.yaml: `sources.0.captions`: the column of 'mine' cannot be found by its name",
        ),
        ("sources: [{name: x, files: a.txt, captions: find}]", "m.yaml: `sources.0`: `captions` are columns, and"),
        (
            "sources: [{name: x, files: a.csv, columns: [url, caption], captions: {mine: long}}]",
            "m.yaml: `sources.0`: `columns` lacks 'long', which other settings name",
        ),
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

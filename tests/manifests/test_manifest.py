"""A manifest of six lines is valid; the error of an invalid one names the file, the setting and the fix."""

import json
import pathlib
import re

import pytest
import yaml
from pydantic import ValidationError

from lotlip_data.manifests import storage
from lotlip_data.manifests.manifest import (
    Manifest,
    ManifestError,
    dump,
    freeze,
    frozen,
    held_for,
    image_settings,
    load,
    parse,
    with_absolute_paths,
)
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.settings import DownloadSettings

SIX_LINES = """
name: my-images
sources:
  - name: mine
    files: [my-images.csv]
    url: image_url
    text: alt
"""


def test_six_lines_are_a_manifest_and_relative_paths_start_at_its_folder(tmp_path: pathlib.Path) -> None:
    (tmp_path / "m.yaml").write_text(SIX_LINES)
    manifest = load(str(tmp_path / "m.yaml"))
    (source,) = manifest.sources
    assert source.files == (f"{tmp_path}/my-images.csv",)
    assert (source.url, source.text, source.format_of(source.files[0])) == ("image_url", "alt", "csv")


def test_a_dumped_manifest_reads_back_equal() -> None:
    manifest = parse(SIX_LINES, "x")
    assert parse(dump(manifest), "x") == manifest


@pytest.mark.parametrize(
    "text, message",
    [
        ("name: x", "m.yaml: `sources`: is missing"),
        ("- a list", "m.yaml: a manifest is a mapping with at least `name` and `sources`"),
        ("name: [", "m.yaml: not YAML: line 1, column 8: "),
        ("name: x\nsources:\n\t- {name: y}", "m.yaml: not YAML: line 3, column 1: found character '\\t' that"),
        ("name: x\nsources:\n\t- {name: y}", "; indent with spaces, not with tabs"),
        ("", "m.yaml: a manifest is a mapping"),
        (SIX_LINES + "sede: 1", "m.yaml: `sede`: there is no such setting"),
        (
            SIX_LINES.replace("my-images\n", "My Images\n"),
            "m.yaml: `name`: 'My Images' may contain only lowercase letters",
        ),
        (SIX_LINES.replace("[my-images.csv]", "[]"), "m.yaml: `sources.0.files`: "),
        (SIX_LINES.replace(".csv", ".xls"), "set `format` to csv, tsv, jsonl, parquet or txt"),
        (SIX_LINES + "    columns: [a, b]", "`columns` lacks 'image_url' and 'alt'"),
        (SIX_LINES + "  - name: mine\n    files: x.csv", "`sources` names mine twice"),
        (SIX_LINES + "sample: 0", "m.yaml: `sample`: "),
        (SIX_LINES + "download: {timeout: -1}", "m.yaml: `download.timeout`: "),
        (SIX_LINES + "download: {image_size: many}", "m.yaml: `download.image_size`: "),
        (
            SIX_LINES + "download: {allow_hosts: [a.intra, 'a.intra:80']}",
            "m.yaml: `download.allow_hosts.1`: 'a.intra:80' is",
        ),
        (SIX_LINES + "name: other\n", "m.yaml: `name` is given twice, in lines 2 and 8; keep one of them"),
        (SIX_LINES + "    url: other\n", "m.yaml: `url` is given twice, in lines 6 and 8; keep one of them"),
        (SIX_LINES + "download: {threads: 1, threads: 2}", "m.yaml: `threads` is given twice, in lines 8 and 8"),
        (SIX_LINES + "seed: 2026-13-45", "m.yaml: month must be in 1..12"),
    ],
)
def test_errors_name_the_file_the_field_and_the_fix(tmp_path: pathlib.Path, text: str, message: str) -> None:
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(ManifestError) as error:
        load(str(tmp_path / "m.yaml"))
    assert message in str(error.value)
    assert str(error.value).startswith(str(tmp_path))


@pytest.mark.parametrize(
    "text, host",
    [
        *(("127.0.0.1:18765", "127.0.0.1"), ("http://a.intra/x", "a.intra"), ("a.intra/x", "a.intra")),
        *((" a.intra", "a.intra"), ("[::1]", "::1"), ("[::1]:80", "::1"), ("bücher.intra", "xn--bcher-kva.intra")),
        *(("a intra", None), ("", None), ("http://", None), ("*.intra", None), ("10.0.0.0/8", None)),
        *(("fd00::/8", None), ("a.intra.", "a.intra"), ("0:0:0:0:0:0:0:1", "::1")),
    ],
)
def test_an_allowed_host_that_no_url_can_match_is_an_error_with_the_spelling_to_use(
    text: str, host: str | None
) -> None:
    with pytest.raises(
        ValidationError, match=re.escape(f"{text!r} is not a host" if host is None else f"write {host!r}")
    ):
        DownloadSettings(allow_hosts=(text,))


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "My_Host", "a.intra", "::1", "fe80::1%eth0", "xn--bcher-kva.intra"]
)
def test_a_host_is_allowed_by_its_name_or_address(host: str) -> None:
    assert DownloadSettings(allow_hosts=(host,)).allow_hosts == (host,)


def test_a_merged_key_can_be_overridden() -> None:
    text = """
        name: x
        sources:
          - &first {name: a, files: a.csv, text: one}
          - {<<: *first, name: b, text: two}
        download: &fetched
          <<: {threads: 1}
          <<: {retries: 3}
          threads: 2
        train: [{method: clip, <<: {seed: 1}, seed: 2}]
    """
    manifest = parse(text, "x")
    assert [(source.name, source.text) for source in manifest.sources] == [("a", "one"), ("b", "two")]
    assert (manifest.download.threads, manifest.download.retries) == (2, 3)


def test_a_missing_or_binary_manifest_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for name, message in (("none.yaml", "there is no such file"), ("binary.yaml", "not a YAML file in UTF-8")):
        with pytest.raises(ManifestError, match=message):
            load(str(tmp_path / name))


def test_the_lists_and_the_stored_size_of_a_partitioned_run_cannot_change(tmp_path: pathlib.Path) -> None:
    run, manifest = Run.at(str(tmp_path / "a run")), parse(SIX_LINES, "x")
    with pytest.raises(ManifestError, match=r"no run here \(no manifest\.yaml\)"):
        frozen(run)
    for _ in range(2):
        freeze(manifest, run)
        assert frozen(run) == manifest
    storage.replace(run.manifest, b"name: caf\xe9\n")
    with pytest.raises(ManifestError, match=r"not UTF-8.*save it as UTF-8"):
        frozen(run)
    storage.replace(run.manifest, dump(manifest).encode())
    for name, value in {"seed": 1, "samples_per_shard": 7, "sample": 5}.items():
        for update in (False, True):
            mark_as_partitioned(run, manifest)
            with pytest.raises(
                ManifestError, match=rf"another manifest: `{name}` is .* in the run, {value} in the mani"
            ):
                freeze(manifest.model_copy(update={name: value}), run, update)
    smaller = Manifest.model_validate(manifest.model_dump() | {"download": {"image_size": 64}})
    with pytest.raises(ManifestError, match=r"`download\.image_size` is \d+ in the run, 64 in the manifest given"):
        freeze(smaller, run, update=True)
    licensed = manifest.model_copy(update={"sources": (manifest.sources[0].model_copy(update={"licence": "CC0"}),)})
    freeze(licensed, run, update=True)
    assert frozen(run) == licensed
    with pytest.raises(ManifestError, match=r"`sources\.0\.url` is .* in the run, \"u\" in the manifest given"):
        freeze(manifest.model_copy(update={"sources": (manifest.sources[0].model_copy(update={"url": "u"}),)}), run)


def mark_as_partitioned(run: Run, manifest: Manifest) -> None:
    """Record the settings as a partition of the lists does."""
    storage.replace(run.plan, json.dumps({"settings": image_settings(manifest)}).encode())


def test_a_setting_of_the_run_changes_only_on_request_and_the_difference_is_named(tmp_path: pathlib.Path) -> None:
    run, manifest = Run.at(str(tmp_path)), parse(SIX_LINES, "x")
    freeze(manifest, run)
    edited = manifest.replace(clean={"duplicates": True}, captioners=("llava",))
    storage.replace(run.manifest, dump(edited).encode())
    assert held_for(manifest, run) == edited  # reads only
    difference = (
        r"`captioners` is \[\"llava\"\] in the run, .*; `clean\.duplicates` is true in the run, false in the mani"
    )
    with pytest.raises(ManifestError, match=rf"{difference}.*--update-manifest"):
        freeze(manifest, run)
    assert frozen(run) == edited
    freeze(manifest, run, update=True)
    assert frozen(run) == manifest


def test_a_fixed_setting_that_is_edited_in_the_run_is_an_error_in_every_stage(tmp_path: pathlib.Path) -> None:
    run, manifest = Run.at(str(tmp_path)), parse(SIX_LINES, "x")
    freeze(manifest, run)
    mark_as_partitioned(run, manifest)
    storage.replace(run.manifest, dump(manifest.replace(seed=3)).encode())
    with pytest.raises(ManifestError, match=r"`seed` is 0 in the run, 3 in this file.*cannot change"):
        frozen(run)
    storage.remove(run.manifest)
    with pytest.raises(ManifestError, match="`seed` is 0 in the run, 3 in the manifest given"):
        freeze(manifest.replace(seed=3), run)
    freeze(manifest, run)  # a run whose manifest was removed gets the one that it was started with
    assert frozen(run) == manifest


def test_a_run_without_a_partition_can_be_started_with_another_manifest(tmp_path: pathlib.Path) -> None:
    run, manifest = Run.at(str(tmp_path)), parse(SIX_LINES, "x")
    freeze(manifest, run)
    with pytest.raises(ManifestError, match=r"not cut into shards yet: give --update-manifest"):
        freeze(manifest.replace(seed=1), run)
    freeze(manifest.replace(seed=1), run, update=True)
    assert frozen(run).seed == 1


def test_relative_paths_in_the_manifest_of_a_run_start_at_the_folder_of_the_original(tmp_path: pathlib.Path) -> None:
    folder, run = tmp_path / "mine", Run.at(str(tmp_path / "elsewhere" / "run"))
    folder.mkdir()
    (folder / "m.yaml").write_text(
        f"{SIX_LINES}train: [{{method: lotlip, image_tower: ./tower, text_tower: org/name}}]"
    )
    freeze(load(str(folder / "m.yaml")), run)
    edited = yaml.safe_load(storage.read_bytes(run.manifest)) | {
        "clean": {"evaluation_sets": ["coco", "/data/iiw", "s3://bucket/dci"]},
        "captioners": [
            {"preset": "llava", "model": "../llava"},
            {"preset": "llava", "name": "b", "model": "org/llava"},
        ],
        "evaluation_data": "eval",
    }
    storage.replace(run.manifest, yaml.safe_dump(edited).encode())
    manifest = frozen(run)
    assert manifest.clean.evaluation_sets == (f"{folder}/coco", "/data/iiw", "s3://bucket/dci")
    assert manifest.evaluation_data == f"{folder}/eval"
    assert [entry.model for entry in manifest.captioners] == [f"{folder}/../llava", "org/llava"]
    assert (manifest.train[0].image_tower, manifest.train[0].text_tower) == (f"{folder}/tower", "org/name")
    assert manifest.sources[0].files == (f"{folder}/my-images.csv",)
    (folder / "m.yaml").write_text("relative_to: s3://bucket/lists\n" + SIX_LINES)
    assert load(str(folder / "m.yaml")).sources[0].files == ("s3://bucket/lists/my-images.csv",)


_BIG = "9" * 1900


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("download: {timeout: .inf}", r"`download.timeout`: inf is not a finite number"),
        ("download: {total_timeout: -.inf}", r"`download.total_timeout`: -inf is not a finite number"),
        ("clean: {min_text_chars: .nan}", r"`clean.min_text_chars`: nan is not a finite number"),
        ("download: {timeout: 1e400}", r"`download.timeout`: .* finite number"),
        ("download: {timeout: 1e308}", r"`download.timeout`: '1e308' .*at most 86400"),
        (f"sample: {_BIG}", "`sample`: is too large for a number of 64 bits"),
        (f"seed: -{_BIG}", "`seed`: is too large for a number of 64 bits"),
        (f"download: {{timeout: {_BIG}}}", "`download.timeout`: is too large"),
        ("seed: " + "9" * 5000, "a number has too many digits"),
        ("x: " + "[" * 400 + "]" * 400, "nested more than 30 deep"),
        ("download: " + "{a: " * 400 + "1" + "}" * 400, "nested more than 30 deep"),
        ("x: &a [*a]", "nested more than 30 deep"),
        (
            "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
            + "\n".join(f"{c}: &{c} [{', '.join(['*' + d] * 10)}]" for d, c in zip("abcdefg", "bcdefgh", strict=True)),
            "more than 1,000,000 values",
        ),
        ('evaluation_data: "\\ud800"', "`evaluation_data`: .* has half of a surrogate pair"),
        ('"\\udfff": 1', "the name of a setting, .* half of a surrogate pair"),
        ("evaluate: [{task: &a [*a]}]", "nested more than 30 deep"),
    ],
)
def test_values_that_no_setting_can_have_are_one_line_with_their_place(section: str, message: str) -> None:
    with pytest.raises(
        ManifestError, match=rf"^m\.yaml: {message}" if not message.startswith("nested") else message
    ) as error:
        parse(f"{SIX_LINES}{section}\n", "m.yaml")
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("delimiter: ';;'", "`sources.0.delimiter`: ';;' is not one character"),
        ("delimiter: '\"'", "is not one character other than a quote"),
        ("escape: x", "`sources.0.escape`: 'x' is unknown"),
        ("decode: rot13", "`sources.0.decode`: 'rot13' is unknown"),
        ("format: jsonl\n    quoting: false", "`quoting` is a setting of CSV and TSV files only"),
        ("columns: [image_url, alt, alt]", "`columns` names 'alt' twice; rename one of them"),
    ],
)
def test_settings_of_a_list_that_do_not_fit_are_named(settings: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        parse(f"{SIX_LINES}    {settings}\n", "m.yaml")


def test_a_source_is_written_without_the_settings_that_it_does_not_use() -> None:
    """So that earlier releases read the manifest of a run too."""
    assert not {"delimiter", "escape", "quoting", "decode"} & set(
        re.findall(r"^ *(\w+):", dump(parse(SIX_LINES, "")), re.M)
    )
    used = "    delimiter: ;\n    escape: '\\'\n    quoting: true\n    decode: url\n"
    manifest = parse(SIX_LINES + used, "m.yaml")
    (source,) = parse(dump(manifest), "m.yaml").sources
    assert (source.delimiter, source.escape, source.quoting, source.decode) == (";", "\\", True, "url")
    (source,) = parse(SIX_LINES.replace("text: alt", "text: null"), "m.yaml").sources
    assert (source.text, source.needed) == (None, ["image_url"])


@pytest.mark.parametrize(
    ("file", "list_format"),
    [
        ("https://a.example/l.csv.gz?download=true", "csv"),
        ("https://a.example/l.parquet?token=a.b", "parquet"),
        ("l.txt.bz2", "txt"),
        ("l.tsv.zst", "tsv"),
    ],
)
def test_the_ending_of_a_file_says_its_format(file: str, list_format: str) -> None:
    (source,) = parse(SIX_LINES.replace("my-images.csv", f"'{file}'"), "m.yaml").sources
    assert source.format_of(file) == list_format


@pytest.mark.parametrize("base", ["/lists", "s3://bucket/lists"])
@pytest.mark.parametrize("path", ["web.csv", "./web.csv", "../web.csv", "images/", "./images/", "./t{0..3}*.csv"])
def test_a_path_that_is_absolute_stays_as_it_is_so_that_a_run_accepts_its_own_manifest(base: str, path: str) -> None:
    given = Manifest.model_validate({"name": "own", "sources": [{"name": "web", "files": [path], "format": "csv"}]})
    once = with_absolute_paths(given, base)
    assert with_absolute_paths(once, base) == once
    assert "/./" not in once.sources[0].files[0]

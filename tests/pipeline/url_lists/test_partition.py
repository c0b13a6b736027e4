"""Every usable URL is in exactly one shard, in an order that depends only on the seed and the URLs."""

import json
import pathlib
import random
import tempfile
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lotlip_data.manifests import digests, storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats.schema import LISTS
from lotlip_data.manifests.manifest import Manifest, ManifestError, freeze, frozen
from lotlip_data.manifests.run_layout import Run, shard_name
from lotlip_data.manifests.settings.source import Source
from lotlip_data.manifests.sources.sample_id import uid_from_url
from lotlip_data.pipeline.core import external_buckets
from lotlip_data.pipeline.url_lists.partition import Partition, PartitionError, load_partition, partition
from lotlip_data.pipeline.url_lists.rows import ListError
from tests.support.logs import captured_messages

Rows = list[tuple[str, str]]


def make_manifest(folder: pathlib.Path, *sources: Rows, **settings: Any) -> Manifest:
    listed_sources = []
    for index, rows in enumerate(sources):
        file = folder / f"list {index}.jsonl"
        file.write_text("".join(json.dumps({"url": url, "caption": text}) + "\n" for url, text in rows))
        listed_sources.append(Source(name=f"s{index}", files=(str(file),)))
    return Manifest(name="test", sources=tuple(listed_sources), **({"samples_per_shard": 100} | settings))


def make_rows(count: int, host: str = "a.example") -> Rows:
    return [(f"http://{host}/{index}.jpg", f"text {index}") for index in range(count)]


def read_shards(run: Run, lists: Partition) -> list[pa.Table]:
    return [pq.read_table(run.list_shard(shard)) for shard in range(lists.shards)]


def read_rows(run: Run, lists: Partition) -> list[dict[str, Any]]:
    return [row for table in read_shards(run, lists) for row in table.to_pylist()]


def test_every_row_is_in_exactly_one_shard_and_all_shards_but_the_last_are_full(tmp_path: pathlib.Path) -> None:
    manifest, run = make_manifest(tmp_path, make_rows(1050)), Run.at(str(tmp_path / "run"))
    result = partition(manifest, run)
    tables = read_shards(run, result)
    assert [table.num_rows for table in tables] == [100] * 10 + [50]
    assert all(table.schema == LISTS for table in tables)
    rows = read_rows(run, result)
    assert sorted((row["url"], row["texts"][0]) for row in rows) == sorted(make_rows(1050))
    assert all(row["uid"] == uid_from_url(row["url"]) and row["sources"] == ["s0"] for row in rows)
    assert (result.images, result.shards, result.rows, result.duplicates, result.invalid) == (1050, 11, 1050, 0, {})
    assert load_partition(run) == result


def test_the_order_depends_on_the_seed_and_not_on_the_order_of_the_lists_or_the_number_of_buckets(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_rows(1000)
    urls = []
    for number, (order, bucket_bytes, seed) in enumerate(
        [(0, 1 << 25, 0), (1, 1000, 0), (2, 5000, 0), (0, 1 << 25, 1)]
    ):
        monkeypatch.setattr(external_buckets, "BUCKET_BYTES", bucket_bytes)
        shuffled = random.Random(order).sample(rows, len(rows))
        run = Run.at(str(tmp_path / f"run{number}"))
        result = partition(make_manifest(tmp_path, shuffled, seed=seed), run)
        urls.append([row["url"] for row in read_rows(run, result)])
    assert urls[0] == urls[1] == urls[2]
    assert sorted(urls[0]) == sorted(urls[3])
    assert urls[0] != urls[3]
    # In random order, about half of any 400 rows are of the first half of the list: 200 ± 6 standard deviations of 7.7.
    first_half = sum(int(url.split("/")[-1].split(".")[0]) < 500 for url in urls[0][:400])
    assert 154 < first_half < 246


def test_every_shard_has_rows_of_every_source_and_host(tmp_path: pathlib.Path) -> None:
    run = Run.at(str(tmp_path / "run"))
    result = partition(make_manifest(tmp_path, make_rows(1000), make_rows(1000, "b.example")), run)
    for table in read_shards(run, result):
        assert 20 < sum(source == ["s0"] for source in table["sources"].to_pylist()) < 80


def test_a_sample_is_the_first_rows_of_the_whole_partition(tmp_path: pathlib.Path) -> None:
    whole, part = Run.at(str(tmp_path / "whole")), Run.at(str(tmp_path / "part"))
    all_rows = read_rows(whole, partition(make_manifest(tmp_path, make_rows(1000)), whole))
    result = partition(make_manifest(tmp_path, make_rows(1000), sample=250), part)
    assert (result.images, result.shards, result.rows) == (250, 3, 1000)
    assert read_rows(part, result) == all_rows[:250]


def test_equal_urls_become_one_image_with_the_texts_of_all_sources_in_order(tmp_path: pathlib.Path) -> None:
    first = [("http://a.example/1", "one"), ("HTTP://A.example:80/1#top", "again"), ("http://a.example/1", "one")]
    second = [("http://b.example/2", "two"), (" http://a.example/1 ", "one"), ("http://a.example/1", "")]
    run = Run.at(str(tmp_path / "run"))
    result = partition(make_manifest(tmp_path, first, second), run)
    merged, single = sorted(read_rows(run, result), key=lambda row: row["url"])
    assert merged["url"] == "http://a.example/1"
    assert merged["texts"] == ["one", "again", "one"]  # a blank one beside a text of its source is none
    assert merged["sources"] == ["s0", "s0", "s1"]
    assert (single["texts"], single["sources"]) == (["two"], ["s1"])
    assert (result.images, result.rows, result.duplicates, result.sources) == (2, 6, 4, {"s0": 3, "s1": 3})


def test_unusable_rows_are_counted_by_reason_and_quarantined_with_their_row_number(tmp_path: pathlib.Path) -> None:
    rows = [("http://a.example/1", "x"), ("ftp://a.example/1", "x"), ("", "x"), ("not a url", "x")]
    run = Run.at(str(tmp_path / "run"))
    result = partition(make_manifest(tmp_path, rows), run)
    assert (result.images, result.rows, result.invalid) == (1, 4, {"no URL": 1, "not an http or https URL": 2})
    quarantined = pq.read_table(run.quarantine("lists", "00000.parquet")).to_pylist()
    assert [(row["row"], row["reason"], row["content"]) for row in quarantined] == [
        (2, "not an http or https URL", "ftp://a.example/1"),
        (3, "no URL", "x"),
        (4, "not an http or https URL", "not a url"),
    ]


def test_lists_without_a_usable_row_are_an_error_with_the_reason_and_leave_no_partition(tmp_path: pathlib.Path) -> None:
    run = Run.at(str(tmp_path / "run"))
    with pytest.raises(PartitionError, match=r"no rows in .*list 0\.jsonl$"):
        partition(make_manifest(tmp_path, []), run)
    with pytest.raises(PartitionError, match=r"none of the 2 rows of .* can be used: 2 × not an http or"):
        partition(make_manifest(tmp_path, [("x", ""), ("y", "")]), run)
    assert load_partition(run) is None


def test_a_second_call_reads_no_list_and_returns_the_same_partition(tmp_path: pathlib.Path) -> None:
    manifest, run = make_manifest(tmp_path, make_rows(150)), Run.at(str(tmp_path / "run"))
    result = partition(manifest, run)
    (tmp_path / "list 0.jsonl").unlink()
    assert partition(manifest, run) == result


def test_a_warning_names_lists_that_have_changed_since_the_partition_but_not_missing_ones(
    tmp_path: pathlib.Path,
) -> None:
    manifest, run = make_manifest(tmp_path, make_rows(15), make_rows(5, "b.example")), Run.at(str(tmp_path / "run"))
    pattern = manifest.sources[1].model_copy(update={"files": (str(tmp_path / "list [1]*.jsonl"),)})
    manifest = manifest.model_copy(update={"sources": (manifest.sources[0], pattern)})
    (tmp_path / "list 1.jsonl").rename(tmp_path / "list [1].jsonl")
    result = partition(manifest, run)

    def sources_in_warnings() -> list[str]:
        with captured_messages() as lines:
            assert partition(manifest, run) == result
        return [line.partition(":")[0] for line in lines if "have changed since the run was partitioned" in line]

    assert sources_in_warnings() == []
    with (tmp_path / "list 0.jsonl").open("a") as stream:
        stream.write("{}\n")
    assert sources_in_warnings() == ["s0"]
    (tmp_path / "list [1] more.jsonl").touch()
    assert sources_in_warnings() == ["s0", "s1"]
    for file in tmp_path.glob("list*"):
        file.unlink()
    assert sources_in_warnings() == []
    content = json.loads(storage.read_bytes(run.plan))
    assert all(len(stamp) == 64 for stamp in content.pop("stamps").values())
    del content[digests.JSON_KEY]
    storage.replace(run.plan, json.dumps(content).encode())  # a partition of an earlier release has no stamps
    result = partition(manifest, run)
    (tmp_path / "list 0.jsonl").touch()
    assert sources_in_warnings() == []


def test_a_source_without_rows_and_one_that_is_not_in_utf8_have_one_warning_each(tmp_path: pathlib.Path) -> None:
    manifest, run = make_manifest(tmp_path, make_rows(3), [], make_rows(4, "b.example")), Run.at(str(tmp_path / "run"))
    lines = (tmp_path / "list 2.jsonl").read_bytes().replace(b"text 1", b"caf\xe9 1").replace(b"text 2", b"\xfc 2")
    (tmp_path / "list 2.jsonl").write_bytes(lines)
    with captured_messages() as messages:
        result = partition(manifest, run)
    assert [line for line in messages if not line.startswith(("reading the list", "7 rows"))] == [
        f"s1: no rows in {tmp_path}/list 1.jsonl",
        "s2: 2 of 4 texts are not in UTF-8, so their unreadable bytes are lost (\ufffd); convert the files, with "
        "`iconv -f latin1 -t utf-8 OLD > NEW` if they are in Latin-1, and use another run folder",
    ]
    assert (result.images, result.garbled) == (7, {"s2": 2}) and load_partition(run) == result


def test_shards_of_a_killed_attempt_are_replaced_if_the_list_has_changed(tmp_path: pathlib.Path) -> None:
    run = Run.at(str(tmp_path / "run"))
    partition(make_manifest(tmp_path, make_rows(300)), run)
    storage.remove(run.plan)  # as if killed right before the last step
    result = partition(make_manifest(tmp_path, make_rows(250, "b.example")), run)
    assert sorted(row["url"] for row in read_rows(run, result)) == sorted(url for url, _ in make_rows(250, "b.example"))


def test_no_file_stays_in_the_temporary_folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    abandoned = scratch / "lotlip-data-partition-killed"
    abandoned.mkdir()
    (abandoned / ".lock").touch()
    partition(make_manifest(tmp_path, make_rows(10)), Run.at(str(tmp_path / "run")))
    assert list(scratch.iterdir()) == []


def with_first_source(manifest: Manifest, **settings: Any) -> Manifest:
    first = Source.model_validate(manifest.sources[0].model_dump() | settings)
    return manifest.model_copy(update={"sources": (first, *manifest.sources[1:])})


def test_a_sources_sample_is_exact_spread_over_all_shards_and_drawn_by_its_own_seed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_rows(1000) + make_rows(300)  # 300 URLs occur twice: the sample is of images, not of rows
    manifest = make_manifest(tmp_path, first, make_rows(500, "b.example"))
    drawn = []
    for number, (bucket_bytes, settings, seed) in enumerate(
        [(1 << 25, {"sample": 200}, 0), (1000, {"sample": 200}, 5), (1 << 25, {"sample": 200, "seed": 1}, 0)]
    ):
        monkeypatch.setattr(external_buckets, "BUCKET_BYTES", bucket_bytes)
        run = Run.at(str(tmp_path / f"run{number}"))
        result = partition(with_first_source(manifest, **settings).model_copy(update={"seed": seed}), run)
        tables = read_shards(run, result)
        drawn_by_shard = [[row["url"] for row in table.to_pylist() if row["sources"] == ["s0"]] for table in tables]
        drawn.append(sorted(url for urls in drawn_by_shard for url in urls))
        assert (result.images, len(drawn[-1]), result.sources) == (700, 200, {"s0": 1300, "s1": 500})
        assert result.images == result.rows - result.not_drawn["s0"] - result.duplicates
        # About 28.6 of 100 rows per shard, ± 5 standard deviations of 4.5.
        assert all(9 < len(urls) < 52 for urls in drawn_by_shard)
    assert drawn[0] == drawn[1]  # neither the buckets nor the manifest's seed changes what is drawn
    assert drawn[0] != drawn[2]


def test_a_sample_larger_than_its_source_has_all_its_images(tmp_path: pathlib.Path) -> None:
    run = Run.at(str(tmp_path / "run"))
    result = partition(with_first_source(make_manifest(tmp_path, make_rows(30)), sample=31), run)
    assert (result.images, result.not_drawn) == (30, {"s0": 0})


def test_an_image_that_one_source_does_not_draw_keeps_the_texts_of_the_others(tmp_path: pathlib.Path) -> None:
    both = [("http://a.example/1", "one"), ("http://a.example/2", "two")]
    run = Run.at(str(tmp_path / "run"))
    result = partition(with_first_source(make_manifest(tmp_path, both, both), sample=1), run)
    assert sorted(len(row["sources"]) for row in read_rows(run, result)) == [1, 2]
    assert (result.images, result.duplicates, result.not_drawn) == (2, 1, {"s0": 1})


def test_filtered_rows_are_counted_by_source_and_rule_and_are_in_no_shard(tmp_path: pathlib.Path) -> None:
    run = Run.at(str(tmp_path / "run"))
    manifest = with_first_source(make_manifest(tmp_path, make_rows(50), make_rows(5)), filter="len(caption) == 6")
    result = partition(manifest, run)
    assert result.filtered == {"s0": {"fails len(caption) == 6": 40}}
    assert (result.images, result.rows, result.duplicates) == (10, 55, 5)
    assert load_partition(run) == result
    with pytest.raises(PartitionError, match=r"none of the 5 rows of .* can be used: 5 × fails len\(caption\) == 99$"):
        unmatched = with_first_source(make_manifest(tmp_path, make_rows(5)), filter="len(caption) == 99")
        partition(unmatched, Run.at(str(tmp_path / "other")))


def test_a_list_shard_has_the_first_expected_hash_of_its_sources(tmp_path: pathlib.Path) -> None:
    run = Run.at(str(tmp_path / "run"))
    manifest = make_manifest(tmp_path, make_rows(1), make_rows(2))
    hashed = [{"url": url, "caption": text, "sha": "a" * 64} for url, text in make_rows(1)]
    (tmp_path / "list 1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in hashed))
    second = manifest.sources[1].model_copy(update={"hash": {"sha": "sha256"}})
    result = partition(manifest.model_copy(update={"sources": (manifest.sources[0], second)}), run)
    (row,) = read_rows(run, result)
    assert (row["sources"], row["expected_sha256"], row["expected_md5"]) == (["s0", "s1"], "a" * 64, None)


def test_every_text_of_a_row_is_a_text_of_its_image(tmp_path: pathlib.Path) -> None:
    """Rows with lists of texts, with one text, and from another source are merged; each text stands once per source."""
    urls = [f"http://a.example/{index}" for index in range(3)]
    captions = [["a", "b"], ["c"], None]
    pq.write_table(pa.table({"url": urls, "caption": captions}), tmp_path / "a.parquet")
    (tmp_path / "b.csv").write_text(f"url,caption\n{urls[0]},b\n{urls[1]},c\n{urls[0]},d\n")
    files = (("one", "a.parquet"), ("two", "b.csv"))
    sources = [{"name": name, "files": [str(tmp_path / file)]} for name, file in files]
    manifest = Manifest.model_validate({"name": "test", "sources": sources})
    run = Run.at(str(tmp_path / "run"))
    result = partition(manifest, run)
    rows = {row["url"]: list(zip(row["sources"], row["texts"], strict=True)) for row in read_rows(run, result)}
    assert rows == {
        urls[0]: [("one", "a"), ("one", "b"), ("two", "b"), ("two", "d")],
        urls[1]: [("one", "c"), ("two", "c")],
        urls[2]: [("one", "")],
    }
    assert (result.images, result.rows, result.duplicates, result.blank) == (3, 6, 3, {"one": 1})


def test_texts_that_are_lost_have_a_warning_with_their_number(tmp_path: pathlib.Path) -> None:
    objects = ['{"url": "http://a.example/1", "caption": {"en": "x"}}']
    blanks = ['{"url": "http://a.example/2", "caption": ""}', '{"url": "http://a.example/3", "caption": null}']
    texts = ['{"url": "http://a.example/4", "caption": "x"}']

    def counts_of(lines: list[str]) -> tuple[Partition, list[str]]:
        (tmp_path / "l.jsonl").write_text("\n".join(lines))
        source = {"name": "mine", "files": [str(tmp_path / "l.jsonl")]}
        manifest = Manifest.model_validate({"name": "test", "sources": [source]})
        with captured_messages() as messages:
            result = partition(manifest, Run.at(str(tmp_path / f"run {len(lines)}")))
        return result, [line for line in messages if line.startswith("mine: ")]

    result, warnings = counts_of([*objects, *blanks, *texts])
    assert (result.not_texts, result.blank) == ({"mine": {"an object": 1}}, {"mine": 3})
    assert warnings == ["mine: 1 of 4 cells of the column 'caption' are an object, not a text"]
    result, warnings = counts_of(blanks)
    assert (result.not_texts, result.blank) == ({}, {"mine": 2})
    assert len(warnings) == 1 and "all texts are blank" in warnings[0]
    with pytest.raises(ListError, match="every cell of the column 'caption' is an object"):
        counts_of(objects)


def test_a_list_that_cannot_be_read_leaves_the_folder_free_for_a_corrected_manifest(tmp_path: pathlib.Path) -> None:
    manifest, run = make_manifest(tmp_path, make_rows(10)), Run.at(str(tmp_path / "run"))
    mistyped = manifest.model_copy(update={"sources": (manifest.sources[0].model_copy(update={"url": "ulr"}),)})
    with pytest.raises(UserError, match="ulr"):
        partition(mistyped, run)
    assert not storage.exists(run.manifest)
    result = partition(manifest, run)
    assert (result.images, frozen(run)) == (10, manifest)


def test_drivers_with_different_manifests_do_not_mix_their_shards(tmp_path: pathlib.Path) -> None:
    """The second manifest is refused before its first shard is written."""
    manifest, run = make_manifest(tmp_path, make_rows(10)), Run.at(str(tmp_path / "run"))
    freeze(manifest, run)  # another driver has read its lists
    with pytest.raises(ManifestError, match="`seed` is 0 in the run, 1 in the manifest given"):
        partition(manifest.model_copy(update={"seed": 1}), run)
    assert storage.list_names(run.lists) == []


def test_shards_of_a_killed_attempt_with_another_manifest_do_not_stay(tmp_path: pathlib.Path) -> None:
    manifest, run = make_manifest(tmp_path, make_rows(250)), Run.at(str(tmp_path / "run"))
    small = manifest.model_copy(update={"samples_per_shard": 10})
    partition(small, run)
    storage.remove(run.plan)  # the attempt is killed before its last write
    freeze(manifest, run, update=True)
    result = partition(manifest, run)
    assert storage.list_names(run.lists, ".parquet") == [f"{shard_name(shard)}.parquet" for shard in range(3)]
    assert len(read_rows(run, result)) == 250


def test_files_of_one_captioner_each_are_one_list_whose_rows_merge(tmp_path: pathlib.Path) -> None:
    """The files have other orders and columns, each lacks another row, and only the first two have raw texts."""
    urls = [f"http://a.example/{index}.jpg" for index in range(6)]
    (tmp_path / "r_0_IB.csv").write_text("".join(["raw,url,IB\n", *(f",{url},x\n" for url in urls[:3])]))
    (tmp_path / "r_IB.csv").write_text("".join(["url,raw,IB\n", *(f"{url},raw {url},x\n" for url in urls[:5])]))
    (tmp_path / "r_SV.csv").write_text("".join(["SV,Image Path\n", *(f"x,{url}\n" for url in urls[:0:-1])]))
    (tmp_path / "r_LLA.csv").write_text("".join(["\ufeffLLA;URL\n", *(f"x;{url}\n" for url in urls[::2])]))
    source = {"use": "recap-long-coyo", "files": [str(tmp_path / "r_*.csv")]}
    manifest = Manifest.model_validate({"name": "test", "sources": [source]})
    run = Run.at(str(tmp_path / "run"))
    result = partition(manifest, run)
    assert {row["url"]: row["texts"] for row in read_rows(run, result)} == {
        **{url: [f"raw {url}"] for url in urls[:5]},
        urls[5]: [""],
    }
    assert (result.images, result.rows, result.duplicates, result.blank) == (6, 16, 10, {"recap-long-coyo": 3})


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (
            "url,raw,IB,SV",
            r"no column of the long texts of llava; the columns of .*r\.csv are 'url', 'raw', 'IB', 'SV'",
        ),
        ("link,href,IB,SV,LLA", r"r\.csv: several columns can hold the URLs: 'link', 'href'. Name the column in `url`"),
        ("raw,IB,SV,LLA", r"r\.csv: no column's name says that it holds the URLs; .*Name the column in `url`"),
        ("url,IB,SV,LLA,LLA_b", r"r\.csv: several columns .* 'LLA', 'LLA_b'. Name .* `captions: \{llava: COLUMN\}`"),
    ],
)
def test_a_list_whose_columns_cannot_be_found_is_refused_before_the_run_exists(
    tmp_path: pathlib.Path, header: str, message: str
) -> None:
    (tmp_path / "r.csv").write_text(f"{header}\n{','.join(['http://a.example/1'] * len(header.split(',')))}\n")
    source = {"use": "recap-long-laion", "files": [str(tmp_path / "r.csv")]}
    run = Run.at(str(tmp_path / "run"))
    with pytest.raises(ListError, match=message):
        partition(Manifest.model_validate({"name": "test", "sources": [source]}), run)
    assert not storage.exists(run.manifest)

"""Every usable URL is in exactly one shard, in an order that only the seed and the URLs decide."""

import json
import pathlib
import random
import tempfile
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lotlip_data.manifests import storage
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.sample_id import uid_from_url
from lotlip_data.manifests.schema import LISTS
from lotlip_data.manifests.source import Source
from lotlip_data.pipeline.core import external_buckets
from lotlip_data.pipeline.url_lists.partition import Partition, PartitionError, load_partition, partition
from tests.support.logs import captured_messages

Rows = list[tuple[str, str]]


def manifest_of(folder: pathlib.Path, *sources: Rows, **settings: Any) -> Manifest:
    listed = []
    for index, rows in enumerate(sources):
        file = folder / f"list {index}.jsonl"
        file.write_text("".join(json.dumps({"url": url, "caption": text}) + "\n" for url, text in rows))
        listed.append(Source(name=f"s{index}", files=(str(file),)))
    return Manifest(name="test", sources=tuple(listed), **({"samples_per_shard": 100} | settings))


def some_rows(count: int, host: str = "a.example") -> Rows:
    return [(f"http://{host}/{index}.jpg", f"text {index}") for index in range(count)]


def shards_of(run: Run, plan: Partition) -> list[pa.Table]:
    return [pq.read_table(run.list_shard(shard)) for shard in range(plan.shards)]


def rows_of(run: Run, plan: Partition) -> list[dict[str, Any]]:
    return [row for table in shards_of(run, plan) for row in table.to_pylist()]


def test_every_row_is_in_exactly_one_shard_and_all_shards_but_the_last_are_full(tmp_path: pathlib.Path) -> None:
    manifest, run = manifest_of(tmp_path, some_rows(1050)), Run.at(str(tmp_path / "run"))
    plan = partition(manifest, run)
    tables = shards_of(run, plan)
    assert [table.num_rows for table in tables] == [100] * 10 + [50]
    assert all(table.schema == LISTS for table in tables)
    rows = rows_of(run, plan)
    assert sorted((row["url"], row["texts"][0]) for row in rows) == sorted(some_rows(1050))
    assert all(row["uid"] == uid_from_url(row["url"]) and row["sources"] == ["s0"] for row in rows)
    assert (plan.images, plan.shards, plan.rows, plan.duplicates, plan.invalid) == (1050, 11, 1050, 0, {})
    assert load_partition(run) == plan


def test_the_order_is_the_seeds_and_neither_the_lists_order_nor_the_number_of_buckets_changes_it(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = some_rows(1000)
    urls = []
    for number, (order, bucket_bytes, seed) in enumerate(
        [(0, 1 << 25, 0), (1, 1000, 0), (2, 5000, 0), (0, 1 << 25, 1)]
    ):
        monkeypatch.setattr(external_buckets, "BUCKET_BYTES", bucket_bytes)
        shuffled = random.Random(order).sample(rows, len(rows))
        run = Run.at(str(tmp_path / f"run{number}"))
        plan = partition(manifest_of(tmp_path, shuffled, seed=seed), run)
        urls.append([row["url"] for row in rows_of(run, plan)])
    assert urls[0] == urls[1] == urls[2]
    assert sorted(urls[0]) == sorted(urls[3])
    assert urls[0] != urls[3]
    # In random order about half of any 400 come from the list's first half: 200 ± 6 standard deviations of 7.7.
    first_half = sum(int(url.split("/")[-1].split(".")[0]) < 500 for url in urls[0][:400])
    assert 154 < first_half < 246


def test_sources_mix_and_each_host_is_spread_over_all_shards(tmp_path: pathlib.Path) -> None:
    run = Run.at(str(tmp_path / "run"))
    plan = partition(manifest_of(tmp_path, some_rows(1000), some_rows(1000, "b.example")), run)
    for table in shards_of(run, plan):
        assert 20 < sum(source == ["s0"] for source in table["sources"].to_pylist()) < 80


def test_a_sample_is_the_beginning_of_the_whole(tmp_path: pathlib.Path) -> None:
    whole, part = Run.at(str(tmp_path / "whole")), Run.at(str(tmp_path / "part"))
    everything = rows_of(whole, partition(manifest_of(tmp_path, some_rows(1000)), whole))
    plan = partition(manifest_of(tmp_path, some_rows(1000), sample=250), part)
    assert (plan.images, plan.shards, plan.rows) == (250, 3, 1000)
    assert rows_of(part, plan) == everything[:250]


def test_equal_urls_are_one_image_with_the_texts_of_all_sources_in_the_manifests_order(tmp_path: pathlib.Path) -> None:
    first = [("http://a.example/1", "one"), ("HTTP://A.example:80/1#top", "again"), ("http://a.example/1", "one")]
    second = [("http://b.example/2", "two"), (" http://a.example/1 ", "one"), ("http://a.example/1", "")]
    run = Run.at(str(tmp_path / "run"))
    plan = partition(manifest_of(tmp_path, first, second), run)
    merged, alone = sorted(rows_of(run, plan), key=lambda row: row["url"])
    assert merged["url"] == "http://a.example/1"
    assert merged["texts"] == ["one", "again", "one", ""]
    assert merged["sources"] == ["s0", "s0", "s1", "s1"]
    assert (alone["texts"], alone["sources"]) == (["two"], ["s1"])
    assert (plan.images, plan.rows, plan.duplicates, plan.sources) == (2, 6, 4, {"s0": 3, "s1": 3})


def test_unusable_rows_are_counted_by_reason_and_kept_with_their_place(tmp_path: pathlib.Path) -> None:
    rows = [("http://a.example/1", "x"), ("ftp://a.example/1", "x"), ("", "x"), ("not a url", "x")]
    run = Run.at(str(tmp_path / "run"))
    plan = partition(manifest_of(tmp_path, rows), run)
    assert (plan.images, plan.rows, plan.invalid) == (1, 4, {"no URL": 1, "not an http or https URL": 2})
    kept = pq.read_table(run.quarantine("lists", "00000.parquet")).to_pylist()
    assert [(row["row"], row["reason"], row["content"]) for row in kept] == [
        (2, "not an http or https URL", "ftp://a.example/1"),
        (3, "no URL", "x"),
        (4, "not an http or https URL", "not a url"),
    ]


def test_lists_without_a_usable_row_are_an_error_that_says_why_and_leaves_no_plan(tmp_path: pathlib.Path) -> None:
    run = Run.at(str(tmp_path / "run"))
    with pytest.raises(PartitionError, match=r"no rows in .*list 0\.jsonl$"):
        partition(manifest_of(tmp_path, []), run)
    with pytest.raises(PartitionError, match=r"none of the 2 rows of .* can be used: 2 × not an http or"):
        partition(manifest_of(tmp_path, [("x", ""), ("y", "")]), run)
    assert load_partition(run) is None


def test_a_second_call_reads_nothing_and_returns_the_same_plan(tmp_path: pathlib.Path) -> None:
    manifest, run = manifest_of(tmp_path, some_rows(150)), Run.at(str(tmp_path / "run"))
    plan = partition(manifest, run)
    (tmp_path / "list 0.jsonl").unlink()
    assert partition(manifest, run) == plan


def test_lists_that_have_changed_since_they_were_cut_are_named_and_those_that_are_gone_are_not(
    tmp_path: pathlib.Path,
) -> None:
    manifest, run = manifest_of(tmp_path, some_rows(15), some_rows(5, "b.example")), Run.at(str(tmp_path / "run"))
    pattern = manifest.sources[1].model_copy(update={"files": (str(tmp_path / "list [1]*.jsonl"),)})
    manifest = manifest.model_copy(update={"sources": (manifest.sources[0], pattern)})
    (tmp_path / "list 1.jsonl").rename(tmp_path / "list [1].jsonl")
    plan = partition(manifest, run)

    def said() -> list[str]:
        with captured_messages() as lines:
            assert partition(manifest, run) == plan
        return [line.partition(":")[0] for line in lines if "have changed since the run was partitioned" in line]

    assert said() == []
    with (tmp_path / "list 0.jsonl").open("a") as stream:
        stream.write("{}\n")
    assert said() == ["s0"]
    (tmp_path / "list [1] more.jsonl").touch()
    assert said() == ["s0", "s1"]
    for file in tmp_path.glob("list*"):
        file.unlink()
    assert said() == []
    content = json.loads(storage.read_bytes(run.plan))
    assert all(len(stamp) == 64 for stamp in content.pop("stamps").values())
    storage.replace(run.plan, json.dumps(content).encode())  # as one of before
    plan = partition(manifest, run)
    (tmp_path / "list 0.jsonl").touch()
    assert said() == []


def test_a_source_without_rows_and_one_that_is_not_in_utf8_are_told_in_a_line_each(tmp_path: pathlib.Path) -> None:
    manifest, run = manifest_of(tmp_path, some_rows(3), [], some_rows(4, "b.example")), Run.at(str(tmp_path / "run"))
    lines = (tmp_path / "list 2.jsonl").read_bytes().replace(b"text 1", b"caf\xe9 1").replace(b"text 2", b"\xfc 2")
    (tmp_path / "list 2.jsonl").write_bytes(lines)
    with captured_messages() as said:
        plan = partition(manifest, run)
    assert [line for line in said if not line.startswith(("reading the list", "7 rows"))] == [
        f"s1: no rows in {tmp_path}/list 1.jsonl",
        "s2: 2 of 4 texts are not in UTF-8, so their unreadable bytes are lost (\ufffd); convert the files, with "
        "`iconv -f latin1 -t utf-8 OLD > NEW` if they are in Latin-1, and use another run folder",
    ]
    assert (plan.images, plan.garbled) == (7, {"s2": 2}) and load_partition(run) == plan


def test_what_a_killed_attempt_left_is_replaced_where_the_list_has_changed_since(tmp_path: pathlib.Path) -> None:
    run = Run.at(str(tmp_path / "run"))
    partition(manifest_of(tmp_path, some_rows(300)), run)
    storage.remove(run.plan)  # as if killed right before the last step
    plan = partition(manifest_of(tmp_path, some_rows(250, "b.example")), run)
    assert sorted(row["url"] for row in rows_of(run, plan)) == sorted(url for url, _ in some_rows(250, "b.example"))


def test_nothing_stays_in_the_temporary_folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    abandoned = scratch / "lotlip-data-partition-killed"
    abandoned.mkdir()
    (abandoned / ".lock").touch()
    partition(manifest_of(tmp_path, some_rows(10)), Run.at(str(tmp_path / "run")))
    assert list(scratch.iterdir()) == []


def with_first_source(manifest: Manifest, **settings: Any) -> Manifest:
    first = Source.model_validate(manifest.sources[0].model_dump() | settings)
    return manifest.model_copy(update={"sources": (first, *manifest.sources[1:])})


def test_a_sources_sample_is_exact_mixed_over_all_shards_and_drawn_by_its_own_seed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = some_rows(1000) + some_rows(300)  # some URLs twice: the sample is of images, not of rows
    manifest = manifest_of(tmp_path, first, some_rows(500, "b.example"))
    drawn = []
    for number, (bucket_bytes, settings, seed) in enumerate(
        [(1 << 25, {"sample": 200}, 0), (1000, {"sample": 200}, 5), (1 << 25, {"sample": 200, "seed": 1}, 0)]
    ):
        monkeypatch.setattr(external_buckets, "BUCKET_BYTES", bucket_bytes)
        run = Run.at(str(tmp_path / f"run{number}"))
        plan = partition(with_first_source(manifest, **settings).model_copy(update={"seed": seed}), run)
        tables = shards_of(run, plan)
        ours = [[row["url"] for row in table.to_pylist() if row["sources"] == ["s0"]] for table in tables]
        drawn.append(sorted(url for urls in ours for url in urls))
        assert (plan.images, len(drawn[-1]), plan.sources) == (700, 200, {"s0": 1300, "s1": 500})
        assert plan.images == plan.rows - plan.not_drawn["s0"] - plan.duplicates
        assert all(9 < len(urls) < 52 for urls in ours)  # 28.6 of 100 each, 5 standard deviations of 4.5 either way
    assert drawn[0] == drawn[1]  # neither the buckets nor the manifest's seed changes what is drawn
    assert drawn[0] != drawn[2]


def test_a_sample_larger_than_its_source_takes_all_of_it(tmp_path: pathlib.Path) -> None:
    run = Run.at(str(tmp_path / "run"))
    plan = partition(with_first_source(manifest_of(tmp_path, some_rows(30)), sample=31), run)
    assert (plan.images, plan.not_drawn) == (30, {"s0": 0})


def test_an_image_that_one_source_does_not_draw_keeps_the_texts_of_the_others(tmp_path: pathlib.Path) -> None:
    both = [("http://a.example/1", "one"), ("http://a.example/2", "two")]
    run = Run.at(str(tmp_path / "run"))
    plan = partition(with_first_source(manifest_of(tmp_path, both, both), sample=1), run)
    assert sorted(len(row["sources"]) for row in rows_of(run, plan)) == [1, 2]
    assert (plan.images, plan.duplicates, plan.not_drawn) == (2, 1, {"s0": 1})


def test_filtered_rows_are_counted_by_source_and_rule_and_are_in_no_shard(tmp_path: pathlib.Path) -> None:
    run = Run.at(str(tmp_path / "run"))
    manifest = with_first_source(manifest_of(tmp_path, some_rows(50), some_rows(5)), filter="len(caption) == 6")
    plan = partition(manifest, run)
    assert plan.filtered == {"s0": {"fails len(caption) == 6": 40}}
    assert (plan.images, plan.rows, plan.duplicates) == (10, 55, 5)
    assert load_partition(run) == plan
    with pytest.raises(PartitionError, match=r"none of the 5 rows of .* can be used: 5 × fails len\(caption\) == 99$"):
        nothing = with_first_source(manifest_of(tmp_path, some_rows(5)), filter="len(caption) == 99")
        partition(nothing, Run.at(str(tmp_path / "other")))


def test_the_first_expected_hash_that_a_list_has_goes_into_the_list_shard(tmp_path: pathlib.Path) -> None:
    run = Run.at(str(tmp_path / "run"))
    manifest = manifest_of(tmp_path, some_rows(1), some_rows(2))
    hashed = [{"url": url, "caption": text, "sha": "a" * 64} for url, text in some_rows(1)]
    (tmp_path / "list 1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in hashed))
    second = manifest.sources[1].model_copy(update={"hash": {"sha": "sha256"}})
    plan = partition(manifest.model_copy(update={"sources": (manifest.sources[0], second)}), run)
    (row,) = rows_of(run, plan)
    assert (row["sources"], row["expected_sha256"], row["expected_md5"]) == (["s0", "s1"], "a" * 64, None)

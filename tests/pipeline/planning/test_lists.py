"""`plan` reads a bounded part of each list, counts it exactly, and marks estimates."""

import gzip
import json
import pathlib
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.planning.lists import plan_lists
from lotlip_data.pipeline.planning.lists_text import format_assumptions, format_text
from lotlip_data.pipeline.url_lists import reader
from lotlip_data.pipeline.url_lists.cells import GARBLED_REMEDY
from lotlip_data.pipeline.url_lists.partition import partition
from lotlip_data.pipeline.url_lists.rows import BATCH_ROWS


def manifest_of(*sources: dict[str, Any], **settings: Any) -> Manifest:
    return Manifest.model_validate({"name": "test", "sources": list(sources)} | settings)


def write_jsonl(path: pathlib.Path, count: int, host: str = "a.example") -> str:
    rows = ({"url": f"http://{host}/{index}.jpg", "caption": f"text {index:07d}"} for index in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_counts_of_small_lists_are_exact_and_agree_with_the_partition(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.csv").write_text("url,caption\nhttp://a.example/1,x\nhttp://a.example/2,yy\nftp://x/3,x\n")
    (tmp_path / "b.csv").write_text("url,caption\nhttp://a.example/1,x\nhttp://b.example/2,y\n")
    manifest = manifest_of(
        {"name": "a", "files": str(tmp_path / "a.csv"), "filter": "len(caption) < 2"},
        {"name": "b", "files": str(tmp_path / "b.csv")},
        samples_per_shard=1,
    )
    plan = plan_lists(manifest)
    first, second = plan.sources
    assert (first.rows, first.rows_exact, first.seen, first.taken) == (3, True, 3, 1)
    assert (first.invalid, first.filtered) == ({"not an http or https URL": 1}, {"fails len(caption) < 2": 1})
    assert (second.duplicates, second.hosts, second.top_hosts) == (1, 2, {"a.example": 0.5, "b.example": 0.5})
    result = partition(manifest, Run.at(str(tmp_path / "run")))
    assert (plan.images, plan.shards) == (result.images, result.shards) == (2, 2)
    assert result.filtered == {"a": first.filtered}
    assert plan.problems == []


@pytest.mark.parametrize("name", ["l.jsonl", "l.jsonl.gz", "l.parquet"])
def test_a_long_list_is_read_in_part_and_its_rows_are_estimated_within_10_percent(
    tmp_path: pathlib.Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 150_000
    file = tmp_path / name
    if name.endswith("parquet"):
        pq.write_table(
            pa.table({"url": [f"http://a.example/{i}" for i in range(count)], "caption": ["x"] * count}), file
        )
    else:
        write_jsonl(tmp_path / "l.jsonl", count)
        if name.endswith("gz"):
            file.write_bytes(gzip.compress((tmp_path / "l.jsonl").read_bytes(), 1))
    chunk_rows = list[int]()
    read_chunks = reader.read_chunks

    def count_rows(*arguments: Any) -> Any:
        for chunk in read_chunks(*arguments):
            chunk_rows.append(len(chunk.rows))
            yield chunk

    monkeypatch.setattr(reader, "read_chunks", count_rows)
    (source,) = plan_lists(manifest_of({"name": "a", "files": str(file)}), rows=1000).sources
    assert sum(chunk_rows) == BATCH_ROWS
    assert source.rows is not None
    assert abs(source.rows - count) <= (0 if source.rows_exact else 0.1 * count)
    assert source.rows_exact == name.endswith("parquet")


def test_a_filter_that_keeps_nothing_and_an_invalid_file_are_found_without_reading_the_whole_list(
    tmp_path: pathlib.Path,
) -> None:
    (tmp_path / "invalid.jsonl").write_text("invalid\n" * 100_000)
    plan = plan_lists(
        manifest_of(
            {"name": "a", "files": write_jsonl(tmp_path / "a.jsonl", 50_000), "filter": "len(caption) > 99"},
            {"name": "b", "files": str(tmp_path / "invalid.jsonl")},
        ),
        rows=1000,
    )
    assert plan.sources[0].seen == BATCH_ROWS
    assert plan.sources[1].seen == 1001
    assert plan.problems[0] == "a: none of the 8192 rows read is usable: 8192 × fails len(caption) > 99"
    assert plan.problems[1].startswith("b: none of the 1001 rows read is usable: 1001 × not a JSON object")


def test_repeated_urls_of_a_source_count_once_as_in_the_partition(tmp_path: pathlib.Path) -> None:
    """One list has 100 rows in two files, each URL four times; one of its 25 images is also in the other list."""
    for half in range(2):
        rows = "".join(f"http://a.example/{(50 * half + row) % 25}.jpg,x{row}\n" for row in range(50))
        (tmp_path / f"a{half}.csv").write_text("url,caption\n" + rows)
    (tmp_path / "b.csv").write_text("url,caption\nhttp://a.example/3.jpg,y\nhttp://b.example/1.jpg,y\n")
    a, b = {"name": "a", "files": str(tmp_path / "a*.csv")}, {"name": "b", "files": str(tmp_path / "b.csv")}
    alone = plan_lists(manifest_of(a, samples_per_shard=10))
    (source,) = alone.sources
    assert (source.taken, source.repeats, source.duplicates, source.images) == (100, 75, 75, 25)
    result = partition(manifest_of(a, samples_per_shard=10), Run.at(str(tmp_path / "alone")))
    assert (alone.images, alone.shards) == (result.images, result.shards) == (25, 3)
    assert "images       25 without duplicates, in 3 shards of 10, if every URL works" in format_text(alone)
    both = plan_lists(manifest_of(a, b))
    assert (both.sources[1].repeats, both.sources[1].duplicates, both.images) == (0, 1, 26)
    assert partition(manifest_of(a, b), Run.at(str(tmp_path / "both"))).images == 26
    for sample, images in ((40, 25), (20, 20)):
        sampled = manifest_of(a | {"sample": sample})
        partitioned = partition(sampled, Run.at(str(tmp_path / f"sample{sample}")))
        assert plan_lists(sampled).images == partitioned.images == images


def test_the_share_of_duplicates_is_subtracted_from_a_list_that_is_read_in_part(tmp_path: pathlib.Path) -> None:
    rows = [f"http://a.example/{row // 2}.jpg" for row in range(30_000)]
    pq.write_table(pa.table({"url": rows, "caption": ["x"] * 30_000}), tmp_path / "a.parquet")
    plan = plan_lists(manifest_of({"name": "a", "files": str(tmp_path / "a.parquet")}), rows=1000)
    (source,) = plan.sources
    assert not source.read_whole and plan.images == pytest.approx(15_000, abs=2)
    assert any(line.startswith("images       about 15,00") for line in format_text(plan))
    assert any("duplicates between rows that were not read are not known" in line for line in format_assumptions(plan))


def test_a_list_that_cannot_be_read_is_a_problem_and_the_others_are_still_read(tmp_path: pathlib.Path) -> None:
    plan = plan_lists(
        manifest_of(
            {"name": "gone", "files": str(tmp_path / "gone.csv")},
            {"name": "here", "files": write_jsonl(tmp_path / "here.jsonl", 10), "text": "caption"},
        )
    )
    assert plan.problems == [f"gone: {tmp_path}/gone.csv: there is no such file"]
    assert (plan.sources[1].taken, plan.images, plan.shards) == (10, None, None)
    assert any(line.startswith("problem") for line in format_text(plan))


@pytest.mark.parametrize("name, content", [("a.csv", ""), ("a.tsv", "url\tcaption\n"), ("a.jsonl", "")])
def test_a_list_without_rows_is_a_problem_also_beside_other_lists(
    tmp_path: pathlib.Path, name: str, content: str
) -> None:
    (tmp_path / name).write_text(content)
    empty = {"name": "empty", "files": str(tmp_path / name)}
    plan = plan_lists(manifest_of(empty))
    assert (plan.problems, plan.images) == ([f"empty: no rows in {tmp_path}/{name}"], 0)
    other = plan_lists(manifest_of(empty, {"name": "here", "files": write_jsonl(tmp_path / "here.jsonl", 10)}))
    assert (other.problems, other.images) == (plan.problems, 10)
    for number in range(20):
        (tmp_path / f"{number}-{name}").write_text(content)
    many = plan_lists(manifest_of({"name": "empty", "files": f"{tmp_path}/*-{name}"}))
    assert many.problems == [f"empty: no rows in {tmp_path}/*-{name} (8 of 20 files read)"]


def test_urls_of_private_hosts_are_a_problem_unless_allowed_and_a_small_share_is_noted(
    tmp_path: pathlib.Path,
) -> None:
    hosts = ["127.0.0.1:8000"] * 3 + ["LOCALHOST"] * 2 + ["[::1]", "10.1.2.3", "8.8.8.8", "intra", "a.example"]
    rows = "".join(f"http://{host}/{index}.jpg,x\n" for index, host in enumerate(hosts))
    (tmp_path / "a.csv").write_text("url,caption\n" + rows)
    source = {"name": "a", "files": str(tmp_path / "a.csv")}

    def problems(*allowed: str) -> list[str]:
        return plan_lists(manifest_of(source, download={"allow_hosts": allowed})).problems

    assert problems() == [
        "a: 70.00% of the URLs read are on this machine or a private network (127.0.0.1, localhost, ::1, 10.1.2.3) and "
        "will not be downloaded; list the hosts in `download.allow_hosts` to download them"
    ]
    assert (
        "20.00% of the URLs read are on this machine or a private network (::1, 10.1.2.3)"
        in problems("127.0.0.1", "Localhost")[0]
    )
    assert problems("127.0.0.1", "localhost", "::1", "10.1.2.3") == []
    write_jsonl(tmp_path / "web.jsonl", 999)
    with (tmp_path / "web.jsonl").open("a") as stream:
        stream.write('{"url": "http://192.168.0.1/x", "caption": "x"}\n')
    web = plan_lists(manifest_of({"name": "web", "files": str(tmp_path / "web.jsonl")}))
    assert web.problems == [] and any("0.10% of the URLs read are on this machine" in note for note in web.notes)


def test_texts_that_are_not_utf8_are_a_problem_with_their_share(tmp_path: pathlib.Path) -> None:
    rows = "".join(f"http://a.example/{index}.jpg,{'é' if index % 4 else 'e'}\n" for index in range(20))
    for encoding, problems in (
        ("utf-8", []),
        ("latin-1", [f"a: 75.00% of the texts read are {GARBLED_REMEDY}"]),
    ):
        (tmp_path / "a.csv").write_bytes(("url,caption\n" + rows).encode(encoding))
        plan = plan_lists(manifest_of({"name": "a", "files": str(tmp_path / "a.csv")}))
        assert (plan.problems, plan.images) == (problems, 20)


def test_a_sample_limits_the_images_and_a_sample_that_is_too_large_is_noted(tmp_path: pathlib.Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", 200)
    small = plan_lists(manifest_of({"name": "a", "files": file, "sample": 50}, sample=30, samples_per_shard=20))
    assert (small.sources[0].images, small.images, small.shards) == (50, 30, 2)
    large = plan_lists(manifest_of({"name": "a", "files": file, "sample": 500}))
    assert "a: `sample` is 500, but the list has only about 200 images" in large.notes
    assert "a: 100% of the URLs are on a.example, which will limit the download speed" in large.notes


def test_a_published_source_with_a_different_number_of_rows_is_noted(tmp_path: pathlib.Path) -> None:
    (tmp_path / "part.tsv").write_text("text\thttp://a.example/1\n")
    plan = plan_lists(manifest_of({"use": "cc3m", "files": str(tmp_path / "part.tsv")}))
    assert plan.notes == [
        "cc3m: the list has 1 rows, the published list has 3,318,333; check whether this is another edition or only a "
        "part"
    ]


def plan_of(path: pathlib.Path, texts: list[Any], **settings: Any) -> Any:
    rows = ({"url": f"http://{index}.example/", "caption": text} for index, text in enumerate(texts))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return plan_lists(manifest_of({"name": "a", "files": str(path)} | settings))


def test_texts_that_are_all_blank_are_a_problem_unless_the_list_has_none(tmp_path: pathlib.Path) -> None:
    (problem,) = plan_of(tmp_path / "l.jsonl", ["", None, " "]).problems
    assert problem.startswith("a: all texts are blank: name another column than 'caption' in `text`")
    assert plan_of(tmp_path / "l.jsonl", ["", None, "a"]).problems == []
    assert plan_of(tmp_path / "l.jsonl", ["", None, " "], text=None).problems == []
    (tmp_path / "l.txt").write_text("http://a.example/1\n")
    assert plan_lists(manifest_of({"name": "a", "files": str(tmp_path / "l.txt")})).problems == []


def test_cells_that_are_no_texts_are_a_problem_with_their_share(tmp_path: pathlib.Path) -> None:
    problems = plan_of(tmp_path / "l.jsonl", ["a", {"en": "b"}, True, "c"]).problems
    assert problems == [
        "a: 25.00% of the cells read of the column 'caption' are an object, not a text",
        "a: 25.00% of the cells read of the column 'caption' are true or false, not a text",
    ]


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("someone%27s+red+boat", "decode: url"),
        ("a%20dog%20on%20the%20beach", "decode: url"),
        ("IMG+red+boat", "decode: url"),
        ("caf%C3%A9", "decode: url"),
        ("Tom &amp; Jerry", "decode: html"),
        ("it&#39;s", "decode: html"),
        ("['a dog', 'a cat']", "written lists"),
        ('["a dog"]', "written lists"),
        ("nan", "words for a missing text"),
        ("None", "words for a missing text"),
        ("100% cotton + silk", ""),
        ("50%off", ""),
        ("R&D department; A+", ""),
        ("a [red] boat", ""),
        ("Nancy", ""),
    ],
)
def test_texts_that_look_encoded_or_missing_are_a_note(tmp_path: pathlib.Path, text: str, hint: str) -> None:
    notes = plan_of(tmp_path / "l.jsonl", [text, "plain text"]).notes
    assert ["look like" in note and hint in note for note in notes] == [True] * bool(hint)


def test_a_text_that_the_source_decodes_is_no_note(tmp_path: pathlib.Path) -> None:
    assert plan_of(tmp_path / "l.jsonl", ["a%20red%20boat"], decode="url").notes == []
    assert plan_of(tmp_path / "l.jsonl", ["Tom &amp; Jerry"], decode="html").notes == []


def test_how_a_file_is_read_that_deviates_from_its_format_is_a_note(tmp_path: pathlib.Path) -> None:
    (tmp_path / "l.csv").write_text("url;caption\nhttp://a.example/1;x\n")
    (note,) = plan_lists(manifest_of({"name": "a", "files": str(tmp_path / "l.csv")})).notes
    assert note == f"a: {tmp_path}/l.csv: its cells are separated by ';'; set `delimiter` if they are not"


def test_a_list_that_is_a_device_or_never_ends_a_line_is_a_problem_at_once(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (problem,) = plan_lists(manifest_of({"name": "a", "files": "/dev/zero", "format": "csv"})).problems
    assert problem == "a: /dev/zero: is not a regular file but a device, a pipe or a socket; save the list as a file"
    monkeypatch.setattr("lotlip_data.pipeline.planning.lists.MAX_LONG_LINES", 2)
    (tmp_path / "l.csv").write_text("url,caption\n" + ("x" * (1 << 20) + "\n") * 5)
    (source,) = plan_lists(manifest_of({"name": "a", "files": str(tmp_path / "l.csv")})).sources
    assert source.invalid == {"line too long": 3}


@pytest.mark.parametrize("has_one_order", [False, True])
def test_files_of_one_captioner_each_count_their_images_once(tmp_path: pathlib.Path, has_one_order: bool) -> None:
    """Exactly where the files are read to their end; where they are not, as many as the longest of the lists has."""
    count = 30_000
    urls = [f"http://a.example/{index:06d}.jpg" for index in range(count)]
    others = urls[::-1], urls[count // 2 :] + urls[: count // 2 - 5000]
    for name, order in zip(("IB", "SV", "LLA"), (urls, *((urls, urls) if has_one_order else others)), strict=True):
        (tmp_path / f"{name}.csv").write_text(
            "".join([f"url,raw,{name}\n", *(f"{url},r,{'text' * 9}\n" for url in order)])
        )
    manifest = manifest_of({"use": "recap-long-coyo", "files": [str(tmp_path / "*.csv")]})
    assert plan_lists(manifest, rows=10 * count).images == count
    estimate = plan_lists(manifest, rows=3_000)
    assert estimate.images is not None and 0.95 < estimate.images / count < 1.05
    assert any("the paper had 24,658,004" in note for note in estimate.notes)
    assert sum("URL in 'url', raw text in 'raw', captions by" in note for note in estimate.notes) == 3


def test_a_captioner_without_a_column_is_a_problem_of_the_plan(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.csv").write_text("url,raw,IB,LLA\nhttp://a.example/1,a,b,c\n")
    plan = plan_lists(manifest_of({"use": "recap-long-coyo", "files": str(tmp_path / "a.csv")}))
    assert [problem for problem in plan.problems if "no column of the long texts of sharegpt4v" in problem]
    manifest = manifest_of(
        {"name": "a", "files": str(tmp_path / "a.csv"), "captions": {"mine": "nope"}, "text": "raw"},
    )
    assert [problem for problem in plan_lists(manifest).problems if "no column 'nope' (mine)" in problem]


def test_a_list_without_a_column_of_raw_texts_is_a_problem_unless_it_is_said(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.csv").write_text("url,IB,LLA,SV\nhttp://a.example/1,a,b,c\n")
    source = {"use": "recap-long-coyo", "files": str(tmp_path / "a.csv")}
    plan = plan_lists(manifest_of(source))
    assert [problem for problem in plan.problems if "set `text: null` if the list has no raw texts" in problem]
    assert plan_lists(manifest_of(source | {"text": None})).problems == []

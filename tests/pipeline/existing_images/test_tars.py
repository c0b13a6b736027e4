"""WebDataset tars: keys are kept, each fault costs its own sample, and a tar that is cut off is one error."""

import io
import json
import tarfile
import tracemalloc
from pathlib import Path

import pytest
import webdataset

from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline.existing_images import containers_of, digest_of, iter_images, iter_rows, read_image, tars
from tests.pipeline.existing_images.read_containers import add, read, source, write_tar

MIB = 1 << 20


def test_a_tar_of_the_webdataset_library_is_read_with_its_keys(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as tar:
        for number in range(3):
            fields = {"caption": f"json {number}", "alt": ["x", f"y {number}"], "size": {"width": number}}
            tar.write(
                {"__key__": f"folder/00{number}", "jpg": bytes([number]), "txt": f"text {number}", "json": fields}
            )
    settings = {"text": ["txt", "json.caption", "json.alt"], "filter": 'col("json.size.width") > 0'}
    result = read(source(tmp_path / "a.tar", **settings))
    assert result.images == {f"folder/00{number}.jpg": bytes([number]) for number in range(3)}
    assert result.texts["folder/001.jpg"] == ("text 1", "json 1", "x", "y 1")
    assert [row.values for row in result.rows] == [{"json.size.width": number} for number in range(3)]
    assert result.rejected == []


def test_keys_and_extensions_are_those_of_the_webdataset_library(tmp_path: Path) -> None:
    names = ["./0.jpg", "a.b/1.JPG", "a.b/1.txt", "2.seg.png", "2.png", "2.txt", "README", "._3.jpg", "__meta__/x.json"]
    write_tar(tmp_path / "a.tar", [(name, name.encode()) for name in names])
    expected = {sample["__key__"] for sample in webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False)}
    result = read(source(tmp_path / "a.tar"))
    assert result.images == {"./0.jpg": b"./0.jpg", "a.b/1.JPG": b"a.b/1.JPG", "2.png": b"2.png"}
    assert expected == {"./0", "a.b/1", "2"} and result.rejected == []
    assert read(source(tmp_path / "a.tar", image="seg.png")).images == {"2.seg.png": b"2.seg.png"}


FAULTS = {
    "no image": [("1.txt", b"text")],
    "several images": [("1.jpg", b"a"), ("1.png", b"b")],
    "duplicate key": [("0.jpg", b"again")],
    "text not in UTF-8": [("1.jpg", b"a"), ("1.txt", b"caf\xe9")],
    "not a JSON object": [("1.jpg", b"a"), ("1.json", b'{"caption": ')],
    "a column stands twice": [("1.jpg", b"a"), ("1.json", b'{"caption": "x", "caption": "y"}')],
    "text too long": [("1.jpg", b"a"), ("1.txt", b"x" * (MIB + 1))],
    "unsafe name": [("../1.jpg", b"a"), ("../1.txt", b"x")],
}
MORE_FAULTS = [
    ("duplicate key", [("1.jpg", b"a"), ("1.jpg", b"b")]),
    ("duplicate key", [("1.jpg", b"a"), ("1.txt", b"b"), ("1.TXT", b"c")]),
    ("duplicate key", [("0.txt", b"far from its image")]),
    ("not a JSON object", [("1.jpg", b"a"), ("1.json", b"[1]")]),
    ("not a JSON object", [("1.jpg", b"a"), ("1.json", b"[" * 100_000)]),
    ("text not in UTF-8", [("1.jpg", b"a"), ("1.json", b'{"caption": "\xff"}')]),
    ("text too long", [("1.jpg", b"a"), ("1.json", b'{"caption": "' + b"x" * MIB + b'"}')]),
    ("unsafe name", [("/1.jpg", b"a")]),
    ("unsafe name", [("a/../../1.jpg", b"a")]),
    ("unsafe name", [("1\n.jpg", b"a")]),
    ("the URL is an object", [("1.jpg", b"a"), ("1.json", b'{"url": {}}')]),
    ("not an http or https URL", [("1.jpg", b"a"), ("1.json", b'{"url": "file:///etc/passwd"}')]),
]


@pytest.mark.parametrize(("reason", "members"), [*FAULTS.items(), *MORE_FAULTS])
def test_a_fault_of_a_sample_costs_this_sample_alone(
    tmp_path: Path, reason: str, members: list[tuple[str, bytes]]
) -> None:
    neighbors = [("0.jpg", b"0"), ("0.txt", b"zero")], [("2.jpg", b"2"), ("2.txt", b"two")]
    write_tar(tmp_path / "a.tar", [*neighbors[0], ("x.jpg", b"x"), *members, *neighbors[1]])
    result = read(source(tmp_path / "a.tar", text=["txt", "json.caption"], url="json.url"))
    assert result.images == {"0.jpg": b"0", "x.jpg": b"x", "2.jpg": b"2"}
    assert result.texts == {"0.jpg": ("zero",), "x.jpg": ("",), "2.jpg": ("two",)}
    assert [row.reason for row in result.rejected] == [reason]


def test_a_sample_without_an_image_says_which_extensions_it_has(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("v1.0.jpg", b"0"), ("v1.0.txt", b"zero"), ("v1.1.jpg", b"1"), ("v1.1.txt", b"one")])
    (row,) = read(source(tmp_path / "a.tar")).rejected
    assert (row.name, row.reason) == ("v1", "no image")
    assert row.detail.endswith("they begin at the first dot: 0.jpg, 0.txt, 1.jpg, 1.txt")


def test_names_that_are_not_in_utf8_cost_their_sample(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as tar:
        add(tar, "caf\udce9.jpg", b"a")
        add(tar, "1.jpg", b"b")
    result = read(source(tmp_path / "a.tar"))
    assert (list(result.images), [row.reason for row in result.rejected]) == (["1.jpg"], ["unsafe name"])


def test_links_and_devices_in_a_tar_are_never_followed(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)):
            add(tar, f"{number}.jpg", kind=kind)
        add(tar, "folder.jpg", kind=tarfile.DIRTYPE)
        add(tar, "4.jpg", b"image")
        add(tar, "4.txt", kind=tarfile.SYMTYPE)
        add(tar, "5.jpg", b"image")
    result = read(source(tmp_path / "a.tar"))
    assert result.images == {"5.jpg": b"image"}
    assert result.reasons == {f"{number}.jpg": "not a plain file" for number in range(5)}


def test_a_huge_member_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tars, "MAX_IMAGE_BYTES", MIB)
    write_tar(tmp_path / "a.tar", [("0.jpg", bytes(16 * MIB)), ("1.jpg", b"image"), ("2.npy", bytes(16 * MIB))])
    (container,) = containers_of(source(tmp_path / "a.tar"), 1000)
    tracemalloc.start()
    rows = list(iter_rows(container, source(tmp_path / "a.tar")))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [getattr(row, "reason", None) for row in rows] == ["too large", None, "no image"]
    assert peak < MIB


def cut(path: Path, length: int) -> Path:
    path.write_bytes(path.read_bytes()[:length])
    return path


@pytest.mark.parametrize("length", [0, 300, 512, 700, 1024, 1536, 2000, 2048])
def test_a_tar_that_is_cut_off_is_one_error_wherever_the_cut_is(tmp_path: Path, length: int) -> None:
    """Also between two members, where tarfile takes it for the end."""
    own = source(cut(write_tar(tmp_path / "a.tar", [("0.jpg", b"0"), ("1.jpg", b"1")]), length))
    (container,) = containers_of(own, 1000)
    for read_it in (
        lambda: list(iter_rows(container, own, remedy="Fetch it.")),
        lambda: list(iter_images(container, "Fetch it.")),
    ):
        with pytest.raises(UserError, match=r"a\.tar: cannot be read \(.*\)\. Fetch it\.$"):
            read_it()


@pytest.mark.parametrize("content", [b"not a tar" * 200, b"\x28\xb5\x2f\xfd" + bytes(600), b"<html>" + b" " * 600])
def test_what_is_no_tar_is_one_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.tar: cannot be read \("):
        read(source(tmp_path / "a.tar"))


def test_joined_tars_and_a_missing_tar_are_errors(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "a.tar", [("0.jpg", b"0")]).read_bytes()
    (tmp_path / "a.tar").write_bytes(whole + whole)
    own = source(tmp_path / "a.tar")
    (container,) = containers_of(own, 1000)
    with pytest.raises(UserError, match="there is more after the mark of its end"):
        list(iter_rows(container, own))
    (tmp_path / "a.tar").unlink()
    for call in (lambda: list(iter_images(container, "Fetch it.")), lambda: digest_of(container, "Fetch it.")):
        with pytest.raises(UserError, match=r"a\.tar: is missing\. Fetch it\.$"):
            call()


def header(name: str, size: bytes, kind: bytes = b"0") -> bytes:
    """A header with any size field and a correct checksum."""
    block = bytearray(512)
    block[: len(name)] = name.encode()
    block[124:136], block[156:157], block[257:265] = size, kind, b"ustar  \0"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


HOSTILE = {
    "an exabyte": header("0.jpg", b"\x80\0\0\0" + (1 << 60).to_bytes(8, "big")),
    "a negative size": header("0.jpg", b"\xff" * 12),
    "a long name of a gigabyte": header("x", b"%011o\0" % (1 << 30), b"L") + bytes(1024),
    "an extension of a gigabyte": header("x", b"%011o\0" % (1 << 30), b"x") + bytes(1024),
    "a thousand extensions": (header("x", b"%011o\0" % 512, b"x") + b"12 path=a.b\n".ljust(512, b"\0")) * 1500,
    "a sparse file without an end": header("0.jpg", b"%011o\0" % 0, b"S")[:482] + b"\1" + bytes(29),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_is_damage(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.tar").write_bytes(HOSTILE[name])
    with pytest.raises(UserError, match=r"a\.tar: cannot be read \("):
        read(source(tmp_path / "a.tar"))


def test_a_changed_tar_is_noticed_before_the_last_image(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("0.jpg", b"0"), ("0.txt", b"text"), ("1.jpg", b"1")])
    (container,) = containers_of(source(path), 1000)
    recorded = digest_of(container)
    path.write_bytes(path.read_bytes().replace(b"text", b"TEXT"))
    with pytest.raises(UserError, match=r"does not match its recorded sha256\)\. Restore it\.$"):
        list(iter_images(container, "Restore it.", recorded=recorded))


def test_memory_grows_neither_with_the_images_nor_with_the_other_members(tmp_path: Path) -> None:
    members = [(f"{row}.{extension}", bytes(100_000)) for row in range(200) for extension in ("jpg", "npy")]
    own = source(write_tar(tmp_path / "a.tar", members))
    (container,) = containers_of(own, 1000)
    tracemalloc.start()
    assert sum(1 for _ in iter_rows(container, own)) == 200
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * MIB


def test_memory_does_not_grow_with_the_length_of_names(tmp_path: Path) -> None:
    own = source(write_tar(tmp_path / "a.tar", [(f"{'x' * 100_000}{row}.jpg", b"x") for row in range(200)]))
    (container,) = containers_of(own, 1000)
    tracemalloc.start()
    reasons = {getattr(row, "reason", None) for row in iter_rows(container, own)}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reasons == {"unsafe name"} and peak < 4 * MIB


def test_a_tar_with_too_many_samples_for_a_shard_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tars, "MAX_ROWS", 3)
    own = source(write_tar(tmp_path / "a.tar", [(f"{row}.jpg", b"x") for row in range(4)]))
    (container,) = containers_of(own, 1000)
    with pytest.raises(UserError, match="has more than 3 samples; cut it into smaller tars"):
        list(iter_rows(container, own))


def test_compressed_tars_are_read(tmp_path: Path) -> None:
    for mode in ("gz", "bz2", "xz"):
        write_tar(tmp_path / f"{mode}.tar", [("0.jpg", b"0")], f"w:{mode}")
    assert len(read(source(tmp_path / "*.tar")).rows) == 3


def test_texts_are_what_the_settings_say(tmp_path: Path) -> None:
    fields = {"caption": "a%20b", "number": 3, "list": ["x", None, "x"], "object": {"a": 1}, "a.b": "dotted"}
    members = [("0.jpg", b"0"), ("0.txt", b"\xef\xbb\xbfc+d "), ("0.json", json.dumps(fields).encode())]
    tar = write_tar(tmp_path / "a.tar", members)
    columns = ["txt", "json.caption", "json.number", "json.list", "json.a.b", "json.none", "cls"]
    (row,) = read(source(tar, text=columns, decode="url")).rows
    assert row.texts == ("c d", "a b", "3", "x", "dotted")
    (row,) = read(source(tar, text="json.object")).rows
    assert (row.texts, row.defect) == (("",), "an object")
    (row,) = read(source(tar, text=None)).rows
    assert row.texts == ("",)


def test_an_image_has_the_url_that_its_json_member_names(tmp_path: Path) -> None:
    members = [("0.jpg", b"0"), ("0.json", b'{"url": " http://a.example/0 "}'), ("1.jpg", b"1"), ("1.json", b"{}")]
    result = read(source(write_tar(tmp_path / "a.tar", members), url="json.url"))
    assert [row.url for row in result.rows] == ["http://a.example/0", None]


def test_one_image_is_read_by_its_name(tmp_path: Path) -> None:
    (container,) = containers_of(source(write_tar(tmp_path / "a.tar", [("0.jpg", b"0"), ("1.jpg", b"1")])), 1000)
    assert read_image(container, "1.jpg") == b"1"
    with pytest.raises(KeyError):
        read_image(container, "2.jpg")


def test_the_settings_of_a_tar_do_not_read_what_they_do_not_need(tmp_path: Path) -> None:
    """A broken JSON member that no column needs costs nothing."""
    tar = write_tar(tmp_path / "a.tar", [("0.jpg", b"0"), ("0.json", b"{"), ("0.txt", b"text")])
    assert read(source(tar)).texts == {"0.jpg": ("text",)}
    with tarfile.open(fileobj=io.BytesIO(tar.read_bytes())) as opened:
        assert len(opened.getnames()) == 3


def test_the_samples_of_a_large_tar_are_estimated_from_its_beginning(tmp_path: Path) -> None:
    members = [(f"{row}.{ending}", bytes(900)) for row in range(400) for ending in ("jpg", "json", "txt")]
    path = write_tar(tmp_path / "a.tar", [*members, ("__meta__/x.json", b""), ("README", b"")])
    assert tars.estimated_samples(str(path), 1000) == tars.estimated_samples(str(path), 400) == 400, "exact at the end"
    estimate = tars.estimated_samples(str(path), 50)
    assert estimate is not None and abs(estimate - 400) < 10
    cut(path, path.stat().st_size // 2)
    assert abs((tars.estimated_samples(str(path), 50) or 0) - 200) < 10, "the rest is not read"
    with pytest.raises(UserError, match=r"a\.tar: cannot be read"):
        tars.estimated_samples(str(path), 1000)


def test_without_images_a_local_tar_is_skipped_through(tmp_path: Path) -> None:
    """A gigabyte that is not on the disk, so reading it would take a second."""
    path = tmp_path / "a.tar"
    with path.open("wb") as file:
        for row in range(2):
            file.write(header(f"{row}.jpg", b"%011o\0" % (1 << 27)))
            file.seek((row + 1) * (512 + (1 << 27)))
        file.write(header("1.txt", b"%011o\0" % 4) + b"text".ljust(512, b"\0") + bytes(1024))
    own = source(path)
    (container,) = containers_of(own, 10)
    tracemalloc.start()
    assert [row.texts for row in iter_rows(container, own, images=False)] == [("",), ("text",)]  # type: ignore[union-attr]
    assert tracemalloc.get_traced_memory()[1] < MIB
    tracemalloc.stop()

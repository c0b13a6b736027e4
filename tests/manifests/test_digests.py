"""Files contain their own sha256, and remain JSON and Parquet for any tool; any bit that changes is noticed."""

import io
import json
import random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typing_extensions import TypedDict

from lotlip_data.manifests import artifacts, digests
from lotlip_data.manifests.digests import DigestMismatch
from lotlip_data.manifests.errors import UserError

TABLE = pa.table({"text": [f"text {row}" for row in range(500)], "count": list(range(500)), "list": [["a"]] * 500})
OBJECT = {"count": 3, "names": ["a", "b"], "inner": {"share": 0.5, "text": "ä\n"}}


class _Object(TypedDict):
    count: int
    names: list[str]
    inner: dict[str, Any]


def flipped(content: bytes, position: int, bit: int) -> bytes:
    """The content with one other bit."""
    return content[:position] + bytes([content[position] ^ 1 << bit]) + content[position + 1 :]


def test_every_flipped_bit_of_a_json_object_is_an_error_or_changes_nothing() -> None:
    for indent in (None, 2):
        content = artifacts.encode_json(OBJECT, indent)
        errors = 0
        for position in range(len(content)):
            for bit in range(8):
                try:
                    read = artifacts.parse_json(flipped(content, position, bit), "a.json", "Remove it.", _Object)
                    assert read == OBJECT
                except UserError as error:
                    assert str(error).startswith("a.json: ") and str(error).endswith("Remove it.")
                    errors += 1
        assert errors > 0.97 * 8 * len(content)


def test_flipped_bits_of_a_parquet_file_are_errors_or_change_nothing() -> None:
    content, generator = artifacts.encode_parquet(TABLE), random.Random(0)
    positions = [*range(len(content) - 600, len(content)), *(generator.randrange(len(content)) for _ in range(1500))]
    errors = 0
    for position in positions:
        try:
            read = artifacts.parse_parquet(
                flipped(content, position, generator.randrange(8)), "a.parquet", "Remove it."
            )
            assert read.equals(TABLE)
        except UserError as error:
            assert str(error).startswith("a.parquet: cannot be read (") and str(error).endswith("Remove it.")
            errors += 1
    assert errors > 0.95 * len(positions)


def test_any_tool_reads_what_has_a_sha256() -> None:
    assert pq.read_table(io.BytesIO(artifacts.encode_parquet(TABLE))).equals(TABLE)
    content = json.loads(artifacts.encode_json(OBJECT))
    assert content.pop(digests.JSON_KEY) and content == OBJECT
    assert json.loads(artifacts.encode_json({})).keys() == {digests.JSON_KEY}
    assert artifacts.parse_json(artifacts.encode_json({}), "a.json", "", artifacts.JsonObject) == {}


def test_what_has_no_sha256_is_read() -> None:
    plain = io.BytesIO()
    pq.write_table(TABLE, plain)
    assert not digests.check_parquet(plain.getvalue()) and not digests.check_json(b'{"a": 1}')
    assert artifacts.parse_parquet(plain.getvalue(), "a.parquet", "").equals(TABLE)
    assert artifacts.parse_json(json.dumps(OBJECT).encode(), "a.json", "", _Object) == OBJECT


def test_the_pages_of_a_parquet_file_have_checksums(tmp_path) -> None:
    """So that a reader of a part of the file notices damage, too."""
    file = tmp_path / "a.parquet"
    with artifacts.parquet_writer(file, TABLE.schema) as writer:
        writer.write_table(TABLE)
    page = pq.read_metadata(file).row_group(0).column(0).data_page_offset + 100
    file.write_bytes(flipped(file.read_bytes(), page, 0))
    with (
        pytest.raises(UserError, match=r"a\.parquet: cannot be read \(.*CRC.*\). Verify\.$"),
        artifacts.open_parquet(str(file), "Verify.") as content,
    ):
        content.read_row_group(0)


def test_the_digest_of_a_marker_is_compared() -> None:
    content = artifacts.encode_parquet(TABLE)
    other = digests.digest_of_bytes(artifacts.encode_parquet(TABLE.slice(1)))
    assert artifacts.parse_parquet(content, "a", "", recorded=digests.digest_of_bytes(content)).equals(TABLE)
    with pytest.raises(UserError, match="bytes instead of"):
        artifacts.parse_parquet(content, "a", "", recorded=other)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"count": 3, "names": []}, "the field `inner` is missing"),
        ({"count": "3", "names": [], "inner": {}}, "the field `count` is wrong: should be a valid integer"),
        ({"count": 3, "names": ["a", 1], "inner": {}}, "the field `names.1` is wrong: should be a valid string"),
    ],
)
def test_a_wrong_field_is_named_with_its_path(content: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError) as error:
        artifacts.parse_json(json.dumps(content).encode(), "a.json", "Remove it.", _Object)
    assert str(error.value) == f"a.json: {problem}. Remove it."


def test_a_stream_has_the_digest_of_all_that_it_reads() -> None:
    reader = digests.HashingReader(io.BytesIO(b"abcdef"))
    assert reader.read(2) == b"ab"
    assert reader.read_to_end() == digests.digest_of_bytes(b"abcdef")
    with pytest.raises(DigestMismatch):
        digests.digest_of_bytes(b"abc").check(digests.digest_of_bytes(b"abd"))

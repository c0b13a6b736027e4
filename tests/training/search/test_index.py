"""The index gives exact results, follows changes, and is whole whenever its process ends."""

import sqlite3
import tracemalloc

import numpy as np
import pytest

from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.iteration import batched
from lotlip_data.training.search import index as module
from lotlip_data.training.search.index import ImageIndex


def unit(count: int, width: int = 8, seed: int = 0) -> np.ndarray:
    features = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def fill(index: ImageIndex, stamps: dict[str, str], features: np.ndarray) -> list[str]:
    """Add what is pending. Returns its names."""
    index.compare(stamps.items())
    names = list(index.pending())
    index.add(names, features[[int(name) for name in names]], [])
    return names


def test_the_nearest_are_those_of_a_full_comparison(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART", 7)
    features, query = unit(50), unit(1, seed=1)[0]
    with ImageIndex(tmp_path / "index.sqlite") as index:
        assert index.nearest(query, 3) == []
        fill(index, {str(number): "" for number in range(50)}, features)
        expected = np.argsort(-(features @ query))
        for count in (1, 3, 50, 60):
            nearest = index.nearest(query, count)
            assert [name for name, _ in nearest] == [str(number) for number in expected[:count]]
            np.testing.assert_allclose([each for _, each in nearest], (features @ query)[expected[:count]], atol=1e-6)


def test_only_new_and_changed_images_are_pending_and_those_that_are_gone_are_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART", 2)
    features = unit(6)
    stamps = {str(number): "1" for number in range(5)}
    with ImageIndex(tmp_path / "index.sqlite") as index:
        assert fill(index, stamps, features) == ["0", "1", "2", "3", "4"]
    del stamps["3"]
    stamps |= {"1": "2", "5": "1"}
    with ImageIndex(tmp_path / "index.sqlite") as index:
        assert fill(index, stamps, features) == ["1", "5"]
        assert {name for name, _ in index.nearest(features[0], 10)} == {"0", "1", "2", "4", "5"}
        assert len(index) == 5
    with ImageIndex(tmp_path / "index.sqlite") as index:
        assert index.compare(stamps.items()) == 0


def test_unreadable_images_are_kept_with_their_reason_until_they_change(tmp_path):
    with ImageIndex(tmp_path / "index.sqlite") as index:
        index.compare([("a", "1"), ("b", "1")])
        index.add(["a"], unit(1), [("b", "is not an image")])
    with ImageIndex(tmp_path / "index.sqlite") as index:
        assert index.compare([("a", "1"), ("b", "1")]) == 0
        assert index.unreadable(10) == (1, [("b", "is not an image")])
        assert len(index.nearest(unit(1)[0], 5)) == 1
    with ImageIndex(tmp_path / "index.sqlite") as index:
        assert index.compare([("a", "1"), ("b", "2")]) == 1 and list(index.pending()) == ["b"]


def test_an_interrupted_comparison_changes_nothing(tmp_path):
    def stamps():
        yield "0", "2"
        raise OSError("the folder cannot be read")

    with ImageIndex(tmp_path / "index.sqlite") as index:
        fill(index, {"0": "1", "1": "1"}, unit(2))
    with ImageIndex(tmp_path / "index.sqlite") as index, pytest.raises(OSError, match="cannot be read"):
        index.compare(stamps())
    with ImageIndex(tmp_path / "index.sqlite") as index:
        assert len(index) == 2 and index.compare([("0", "1"), ("1", "1")]) == 0


def test_damage_and_features_of_another_width_are_named(tmp_path):
    file = tmp_path / "index.sqlite"
    file.write_bytes(b"no database, but long enough to be one" * 100)
    with pytest.raises(UserError, match=r"is damaged .* delete it"):
        ImageIndex(file)
    file.unlink()
    with ImageIndex(file) as index:
        fill(index, {"0": "1"}, unit(1))
    with sqlite3.connect(file) as database:
        database.execute("UPDATE images SET feature = x'00'")
    database.close()
    with ImageIndex(file) as index, pytest.raises(UserError, match="another width"):
        index.nearest(unit(1)[0], 1)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises((UserError, OSError)):
        ImageIndex(tmp_path / "file" / "index.sqlite")


def test_memory_does_not_grow_with_the_number_of_images(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART", 256)
    features = unit(256, width=64)

    def peak(images: int) -> int:
        with ImageIndex(tmp_path / f"{images}.sqlite") as index:
            tracemalloc.start()
            index.compare((f"{number:07d}", "") for number in range(images))
            for names in batched(index.pending(), 256):
                index.add(list(names), features[: len(names)], [])
            index.nearest(features[0], 10)
            memory = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        return memory

    assert peak(20_000) < 2 * peak(2_000)

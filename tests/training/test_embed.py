"""`embed` writes the features of the model, in the order of names and lines, and skips unreadable images."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline.cli.main import app
from lotlip_data.synthetic.scenes import render, sample_scene
from lotlip_data.training import embed
from lotlip_data.training.config import make_config
from lotlip_data.training.evaluation.models import load_embedder
from lotlip_data.training.models.lotlip import load_model
from tests.training.run_fixture import write_towers


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    load_model(make_config(**write_towers(folder / "towers"), context_length=96)).save(str(folder / "model"))
    return load_embedder(str(folder / "model"), "cpu")


def read_features(path):
    """The first column and the features [N, D] of a file that `embed` wrote."""
    table = pq.read_table(path)
    return table.column(0).to_pylist(), np.stack(table.column("feature").to_numpy(zero_copy_only=False))


def test_features_of_images_are_in_the_order_of_their_names(model, tmp_path, monkeypatch):
    monkeypatch.setattr(embed, "BATCH_SIZE", 3)
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    pictures = {f"{'more/' if seed > 4 else ''}{seed}.jpg": render(sample_scene(seed), 96) for seed in range(7)}
    for name, picture in pictures.items():
        picture.save(folder / name, quality=100)
    (folder / "3.png").write_bytes(b"not an image")
    (folder / "notes.txt").write_text("not an image either")
    embedding = embed.embed_images(model, str(folder), str(tmp_path / "out.parquet"))
    assert embedding.written == 7 and len(embedding.failed) == 1 and embedding.failed[0].startswith("3.png: ")
    names, features = read_features(tmp_path / "out.parquet")
    assert names == sorted(pictures)
    expected = model.embed_images([Image.open(folder / name) for name in names]).numpy()
    np.testing.assert_allclose(features, expected, atol=1e-6)
    with pytest.raises(UserError, match="exists already"):
        embed.embed_images(model, str(folder), str(tmp_path / "out.parquet"))
    with pytest.raises(UserError, match="has no images"):
        embed.embed_images(model, str(tmp_path / "nowhere"), str(tmp_path / "b.parquet"))


def test_features_of_texts_are_in_the_order_of_their_lines(model, tmp_path, caplog):
    lines = ["A red circle. A blue square.", "", "x " * 500, "Ünïcode."]
    (tmp_path / "texts.txt").write_text("\n".join(lines) + "\n")
    caplog.clear()
    embedding = embed.embed_texts(model, str(tmp_path / "texts.txt"), str(tmp_path / "out.parquet"))
    texts, features = read_features(tmp_path / "out.parquet")
    assert texts == lines and embedding.written == 4
    assert caplog.messages == ["1 of 4 texts is longer than 96 tokens and truncated"]
    np.testing.assert_allclose(features, model.embed_texts(lines).features.numpy(), atol=1e-6)
    (tmp_path / "latin.txt").write_bytes(b"\xe4\n")
    with pytest.raises(UserError, match="not UTF-8"):
        embed.embed_texts(model, str(tmp_path / "latin.txt"), str(tmp_path / "b.parquet"))


def test_what_would_fail_is_found_before_the_model_is_loaded(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"not an image")
    (tmp_path / "out.parquet").write_bytes(b"")
    (tmp_path / "empty.txt").write_text("")
    for arguments, message in (
        (("out.parquet", "photos"), "exists already"),
        (("photos", "photos"), "is a folder"),
        (("new.parquet", "nowhere"), "has no images"),
        (("new.parquet", None, "nowhere.txt"), "there is no such file"),
        (("new.parquet", None, "empty.txt"), "has no texts"),
    ):
        paths = (name and str(tmp_path / name) for name in arguments)
        with pytest.raises(UserError, match=message):
            embed.check_input(*paths)
        option = "--images" if len(arguments) == 2 else "--texts"
        command_line = ["embed", "no-model", str(tmp_path / arguments[0]), option, str(tmp_path / arguments[-1])]
        ended = CliRunner().invoke(app, command_line)
        assert ended.exit_code == 2 and message in ended.output


def test_the_reason_of_an_unreadable_image_has_no_address(model, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"not an image")
    embedding = embed.embed_images(model, str(tmp_path), str(tmp_path / "out.parquet"))
    assert embedding.failed == ["a.jpg: is not an image, or its format is not supported"]

"""Kinds of scorers, the ones that another package adds, and what an entry of a manifest may say."""

import importlib.util
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest
import yaml

from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.settings.scores import ScorerEntry
from lotlip_data.pipeline.scoring import registry
from lotlip_data.pipeline.scoring.registry import get_scorer_kind, load_scorer
from tests.pipeline.scoring.dataset_scorers import image_with_texts, score_shards
from tests.support.paths import ROOT

MEMBERS = ("scores", "reads_images", "better", "needs_model", "settings_type", "identity")


def load(**entry: object) -> object:
    return load_scorer(ScorerEntry.parse(entry))


@pytest.mark.parametrize("kind", registry._KINDS)
def test_every_built_in_kind_has_what_a_scorer_must_have(kind: str) -> None:
    module = registry._KINDS[kind].partition(":")[0]
    if importlib.util.find_spec(f"lotlip_data.pipeline.scoring.{module}") is None:
        pytest.skip(f"there is no {module}.py")
    scorer = get_scorer_kind(kind)
    assert all(hasattr(scorer, name) for name in MEMBERS)
    is_of_dataset = all(hasattr(scorer, name) for name in ("survey", "combine", "assign"))
    assert is_of_dataset != hasattr(scorer, "score")


def test_a_kind_is_made_of_the_entrys_options() -> None:
    scorer = load(kind="repetition", options={"near": True, "bands": 2})
    assert scorer.options.model_dump() == {"near": True, "words": 2, "bands": 2, "band_size": 5}
    assert load(kind="placeholder").options.distance == 4


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"kind": "repetitions"}, r"scorer kind 'repetitions' is unknown; did you mean 'repetition'\? Known are simil"),
        ({"kind": "xyz"}, r"'xyz' is unknown; known are similarity, agreement, repetition, placeholder, classifier.*\. "
                          r"Another package adds a kind through an entry point in the group 'lotlip_data.scorers'"),
        ({"kind": "repetition", "name": "boilerplate", "options": {"nearr": 1}},
         r"^scorer 'boilerplate': options: `nearr`: .*did you mean .*near"),
        ({"kind": "placeholder", "options": {"distance": -1}}, "^scorer 'placeholder': options: `distance`: "),
        ({"kind": "repetition", "model": "x"}, "^scorer 'repetition': kind 'repetition' has no model; leave out"),
        ({"kind": "classifier", "name": "nsfw", "options": {"head": "x.npz"}},
         "^scorer 'nsfw': kind 'classifier' needs a model; add `model`"),
        ({"kind": "classifier", "model": "x"}, "^scorer 'classifier': options: `head`: "),
    ],
)  # fmt: skip
def test_a_wrong_entry_is_an_error_with_its_name(entry: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(**entry)


def test_the_registry_and_the_scorers_import_nothing_heavy() -> None:
    code = """
import sys
from lotlip_data.pipeline.scoring.registry import get_scorer_kind
assert not {"torch", "ray", "transformers"} & set(sys.modules)
for kind in ("repetition", "placeholder", "classifier"):
    get_scorer_kind(kind)
assert not {"torch", "ray", "transformers"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def install(folder: pathlib.Path, code: str, entry_points: str) -> None:
    (folder / "my_scorers.py").write_text(code)
    metadata = folder / "my_scorers-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-scorers\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{registry.ENTRY_POINTS}]\n{entry_points}\n")


@pytest.fixture
def packages(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A folder in which packages can be installed, and forgotten kinds after it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_scorers", raising=False)
    get_scorer_kind.cache_clear()
    return tmp_path


def test_a_package_that_cannot_be_imported_is_reported_with_its_kind(packages: pathlib.Path) -> None:
    install(packages, "import nothing_of_this_name", "broken = my_scorers:Broken\nnone = my_scorers:Nothing")
    with pytest.raises(UserError, match=r"scorer kind 'broken': its package cannot be imported .*nothing_of_this_name"):
        get_scorer_kind("broken")
    with pytest.raises(UserError, match=r"known are .*classifier, broken, none"):
        get_scorer_kind("xyz")


def test_the_guides_examples_of_scorers_work(packages: pathlib.Path) -> None:
    page = (ROOT / "docs" / "guides" / "write-scorer.md").read_text()
    blocks = re.findall(r"^```(?:python title=|toml title=|yaml)[^\n]*\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    code, project, manifest = blocks[:3]
    points = tomllib.loads(project)["project"]["entry-points"][registry.ENTRY_POINTS]
    install(packages, code, "\n".join(f"{name} = {target}" for name, target in points.items()))
    entries = [ScorerEntry.parse(entry) for entry in yaml.safe_load(manifest)["scores"]]
    sharpness, length, share = map(load_scorer, entries)
    assert [entry.label for entry in entries] == ["sharpness", "words", "length-share"]

    import io

    import numpy as np
    from PIL import Image

    from lotlip_data.pipeline.scoring.base import ImageScores, ScoredImage, TextScore

    def png(pixels: np.ndarray) -> ScoredImage:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return ScoredImage("", "", file.getvalue(), ())

    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    scores = list(sharpness.score([png(noise), png(np.full((64, 64), 9, np.uint8)), ScoredImage("", "", b"", ())]))
    assert (scores[0].image or 0) > 100 and scores[1].image == 0 and "cannot be decoded" in (scores[2].error or "")

    image = image_with_texts("a", ["two words"], one=["A b c.", " "])
    (scores,) = length.score([image])
    assert scores == ImageScores(texts=(TextScore(2), TextScore(3, (3, None))))
    assert length.identity == {"version": 1, "most": 3}

    shards = {
        0: [image_with_texts("a", ["a"]), image_with_texts("b", ["a b"])],
        4: [image_with_texts("c", ["a c", ""])],
    }
    scores_by_shard = score_shards(share, shards, packages / "scores")
    assert [[text.score for each in of_shard for text in each.texts] for of_shard in scores_by_shard.values()] == [
        [1 / 3, 2 / 3],
        [2 / 3, None],
    ]

"""The committed towers are small, have a README and suit the demo."""

from pathlib import Path

import pytest
import torch

from lotlip_data.synthetic.caption_writers import WRITERS, long_text, raw_text
from lotlip_data.synthetic.scenes import SPLITS, render, sample_scene
from lotlip_data.synthetic.train_towers import TINY_BERT, TINY_VIT
from lotlip_data.training.config import make_config
from lotlip_data.training.models.lotlip import load_model


@pytest.mark.parametrize("folder", [TINY_VIT, TINY_BERT])
def test_a_tower_has_at_most_four_megabytes_and_its_readme_states_its_limits(folder: Path) -> None:
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 4_000_000
    assert "knows nothing but" in " ".join((folder / "README.md").read_text().split())


def test_the_vocabulary_has_every_word_of_the_scenes_and_no_text_is_truncated() -> None:
    model = load_model(make_config(preset="demo"))
    unknown = model.tokenizer.tokenizer.unk_token_id
    for seed in SPLITS["evaluation"][:200]:
        scene = sample_scene(seed)
        encoded = model.tokenizer.encode([*(long_text(scene, writer) for writer in WRITERS), raw_text(scene)])
        assert not any(encoded.truncated) and all(unknown not in ids for ids in encoded.ids)


def test_the_image_tower_has_different_features_for_unseen_scenes() -> None:
    model = load_model(make_config(preset="demo"))
    features = model.embed_images(render(sample_scene(seed)) for seed in SPLITS["evaluation"][:100])
    similarity = (features @ features.T).fill_diagonal_(-1.0).amax(dim=1)
    assert torch.isfinite(features).all() and (similarity < 0.9999).all()

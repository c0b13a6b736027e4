"""Every method and every setting that saves time or memory: what it computes, on a training's own first step."""

import pytest
import torch
import torch.nn.functional as F

from lotlip_data.training import loss
from lotlip_data.training.config import METHODS, make_config
from lotlip_data.training.data import dataset as data
from lotlip_data.training.loss import COMPONENTS, primary_components
from lotlip_data.training.metrics import TrainingDiverged
from lotlip_data.training.trainer import Trainer, train
from tests.training.run_fixture import write_run, write_towers

SETTINGS = {"batch": 24, "epochs": 10, "warm_up": 2, "lr": 1e-3, "context_length": 96}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return data.open_dataset(write_run(folder / "run")), write_towers(folder / "towers")


@pytest.fixture
def trainer(world, tmp_path):
    """Makes the trainer of some settings, with everything in place for its first step."""
    dataset, towers = world

    def make(**settings):
        made = Trainer(make_config(**{**SETTINGS, **towers, **settings}), dataset, str(tmp_path))
        if made.config.images == "features":
            made.images.fill()
        return made

    return make


def first_loss(trainer, *, dropout=False):
    """The loss of step 0 and its gradient by every parameter that learns."""
    trainer.model.towers.train(dropout or trainer.config.activation_checkpointing)
    if not dropout:
        for module in trainer.model.towers.text.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    found, embedded = trainer.objective(trainer.batch(0))
    found.total.backward()
    parameters = trainer.model.towers.named_parameters()
    return found, {name: value.grad for name, value in parameters if value.grad is not None}, embedded


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "settings",
    [{"accumulate": 3}, {"activation_checkpointing": True}, {"accumulate": 3, "activation_checkpointing": True}],
    ids=lambda settings: " and ".join(settings),
)
def test_pieces_and_checkpointing_change_no_gradient(trainer, method, settings):
    whole, wanted, _ = first_loss(trainer(method=method))
    found, gradients, _ = first_loss(trainer(method=method, **settings))
    torch.testing.assert_close(found.total, whole.total, rtol=1e-6, atol=0)
    assert gradients.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(gradients[name], value, rtol=0, atol=1e-5 * max(1, value.abs().max().item()))


TERMS = {"lit": 1, "clip": 1, "lit_long": 3, "lit_longclip": 3, "register": 3, "lotlip": 1 + 2 * 3}
TERMS["lotlip_scratch"] = TERMS["lotlip"]


@pytest.mark.parametrize("method", METHODS)
def test_each_method_has_its_terms(trainer, monkeypatch, method):
    """Two long texts, two corner tokens: how many pairs of features meet in the loss, and which images they meet."""
    settings = {} if method in ("lit", "clip") else {"long_texts": 2}
    made, pairs, contrastive = trainer(method=method, **settings), [], loss.contrastive

    def seen(image, text, scale, here):
        pairs.append((image, text))
        return contrastive(image, text, scale, here)

    monkeypatch.setattr(loss, "contrastive", seen)
    first_loss(made)
    assert len(pairs) == TERMS[method]
    images = made.images.rows(made.batches.places(0))
    image = F.normalize(images if images.ndim == 2 else made.towers.image(images), dim=-1)
    short = primary_components(image, COMPONENTS) if method == "lit_longclip" else image
    assert torch.equal(pairs[0][0], short) and all(torch.equal(other, image) for other, _ in pairs[1:])


def test_without_the_mask_corner_tokens_keep_their_loss_and_all_else_sees_them(trainer):
    made = trainer(corner_mask=False)
    assert not made.model.towers.text.settings.mask and made.config.corner_loss
    whole, _, _ = first_loss(made)
    masked, _, _ = first_loss(trainer())
    assert whole.short.item() != masked.short.item()


def test_no_sub_captions_is_no_long_text(trainer):
    found, _, _ = first_loss(trainer(sub_captions=0))
    assert found.long.item() == 0 and found.total.item() == found.short.item() > 0


def test_all_shows_a_long_text_of_every_captioner_chosen(trainer):
    made = trainer(long_texts="all")
    assert {len(text.long) for text in _texts(made)} == {len(made.batches._picker.captioners)} == {3}
    assert {len(text.long) for text in _texts(trainer(long_texts="all", captioners=["llava"]))} == {1}


def _texts(made):
    return made.batches.texts(made.batches.places(0))


@pytest.mark.parametrize("context", [256, 512])
def test_texts_may_be_as_long_as_berts_positions(world, tmp_path, context):
    dataset, _ = world
    towers = write_towers(tmp_path / "towers", positions=512)
    made = Trainer(
        make_config(**{**SETTINGS, **towers, "context_length": context, "sub_captions": 8}),
        dataset,
        str(tmp_path),
    )
    ids = made.model.tokenizer.encode(["a text " * 600]).ids
    assert len(ids[0]) == context
    assert made.towers.text(torch.tensor(ids)).isfinite().all()
    made.images.fill()
    assert first_loss(made)[0].total.isfinite()


def test_eight_sub_captions_are_taken_where_a_text_has_as_many(trainer):
    three, eight = (
        [text.count(". ") for texts in _texts(trainer(sub_captions=count)) for text in texts.long] for count in (3, 8)
    )
    assert max(three) == 2 < max(eight) <= 7


@pytest.mark.parametrize("corners", range(5))
@pytest.mark.parametrize("context", [32, 128])
def test_corner_tokens_and_context_length_are_free(trainer, corners, context):
    made = trainer(corner_tokens=corners, context_length=context)
    assert max(map(len, made.model.tokenizer.encode(["a text " * 200]).ids)) == context
    assert first_loss(made)[0].total.isfinite()


def test_bf16_computes_the_tower_in_bf16_and_keeps_weights_and_features_in_float32(trainer):
    whole, wanted, _ = first_loss(trainer())
    made = trainer(precision="bf16")
    found, gradients, embedded = first_loss(made)
    assert embedded.features.dtype == torch.bfloat16 and found.total.dtype == torch.float32
    assert {value.dtype for value in made.model.towers.parameters()} == {torch.float32}
    torch.testing.assert_close(found.total, whole.total, rtol=0.01, atol=0)
    name = "text.proj.weight"
    assert F.cosine_similarity(gradients[name].flatten(), wanted[name].flatten(), dim=0) > 0.99


@pytest.mark.slow
def test_a_compiled_tower_gives_the_same_gradients_and_saves_the_same_names(trainer):
    whole, wanted, _ = first_loss(trainer())
    made = trainer(compile=True)
    found, gradients, _ = first_loss(made)
    torch.testing.assert_close(found.total, whole.total, rtol=1e-5, atol=0)
    for name, value in wanted.items():
        torch.testing.assert_close(gradients[name], value, rtol=0, atol=1e-5 * max(1, value.abs().max().item()))
    assert made.model.towers.state_dict().keys() == trainer().model.towers.state_dict().keys()


def test_a_training_goes_on_in_smaller_pieces_after_it_ran_out_of_memory(world, tmp_path, monkeypatch, caplog):
    dataset, towers = world
    settings = {**SETTINGS, **towers, "epochs": 3, "checkpoint_every": 2}
    step = Trainer.step

    def dies(self, number, batch):
        if number == 4:
            raise TrainingDiverged("out of memory")
        return step(self, number, batch)

    monkeypatch.setattr(Trainer, "step", dies)
    with pytest.raises(TrainingDiverged):
        train(make_config(**settings), dataset.url, str(tmp_path / "t"))
    monkeypatch.setattr(Trainer, "step", step)
    caplog.clear()
    train(make_config(**settings, accumulate=2), dataset.url, str(tmp_path / "t"))
    assert any("going on after step 4 of 6" in line for line in caplog.messages)

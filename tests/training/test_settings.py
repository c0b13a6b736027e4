"""Every method and every setting that saves time or memory computes what it should in a training's first step."""

import pytest
import torch
import torch.nn.functional as F

from lotlip_data.training import loss
from lotlip_data.training.config import METHODS, make_config
from lotlip_data.training.data import dataset as data
from lotlip_data.training.loss import project_on_principal_components
from lotlip_data.training.metrics import TrainingDiverged
from lotlip_data.training.trainer import Trainer, train
from tests.training.run_fixture import batch_loss, write_run, write_towers

SETTINGS = {"batch": 24, "epochs": 10, "warm_up": 2, "lr": 1e-3, "context_length": 96}


@pytest.fixture(scope="module")
def dataset_and_towers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return data.open_dataset(write_run(folder / "run")), write_towers(folder / "towers")


@pytest.fixture
def make_trainer(dataset_and_towers, tmp_path):
    """Makes the trainer of some settings, ready for its first step."""
    dataset, towers = dataset_and_towers

    def make(**settings):
        trainer = Trainer(make_config(**{**SETTINGS, **towers, **settings}), dataset, str(tmp_path))
        if trainer.config.images == "features":
            trainer.images.fill()
        return trainer

    return make


def first_loss(trainer, *, dropout=False):
    """The loss of step 0, its gradient by every parameter that learns, and the features."""
    trainer.towers.train(dropout or trainer.config.activation_checkpointing)
    if not dropout:
        for module in trainer.towers.text.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    value, features = batch_loss(trainer, trainer.make_batch(0))
    value.total.backward()
    parameters = trainer.towers.named_parameters()
    gradients = {name: parameter.grad for name, parameter in parameters if parameter.grad is not None}
    return value, gradients, features


@pytest.fixture(scope="module")
def whole_batch_loss(dataset_and_towers, tmp_path_factory):
    """The first loss of a method and its gradients, without any setting that saves memory."""
    dataset, towers = dataset_and_towers
    computed = {}

    def loss_of(method):
        if method not in computed:
            config = make_config(**SETTINGS, **towers, method=method)
            trainer = Trainer(config, dataset, str(tmp_path_factory.mktemp("out")))
            if config.images == "features":
                trainer.images.fill()
            computed[method] = first_loss(trainer)[:2]
        return computed[method]

    return loss_of


def assert_gradients_close(actual, expected):
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=0, atol=1e-5 * max(1, value.abs().max().item()))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "settings",
    [{"accumulate": 3}, {"activation_checkpointing": True}, {"accumulate": 3, "activation_checkpointing": True}],
    ids=lambda settings: " and ".join(settings),
)
def test_accumulation_and_activation_checkpointing_change_no_gradient(make_trainer, whole_batch_loss, method, settings):
    whole, expected = whole_batch_loss(method)
    value, gradients, _ = first_loss(make_trainer(method=method, **settings))
    torch.testing.assert_close(value.total, whole.total, rtol=1e-6, atol=0)
    assert gradients.keys() == expected.keys()
    assert_gradients_close(gradients, expected)


TERMS = {"lit": 1, "clip": 1, "lotlip": 1 + 2 * 3, "lotlip_scratch": 1 + 2 * 3}
"""Terms of a method's loss with two long texts and two corner tokens. Not listed: 3."""


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_of_a_method_has_its_terms(make_trainer, monkeypatch, method):
    """With two long texts: the number of losses of an image and a text, their kind, and the images of each."""
    settings = {} if method in ("lit", "clip") else {"long_texts": 2}
    trainer, pairs = make_trainer(method=method, **settings), []

    def record(kind):
        function = getattr(loss, kind)

        def call(image, text, *arguments):
            pairs.append((kind, image, text))
            return function(image, text, *arguments)

        return call

    for kind in ("contrastive_loss", "sigmoid_loss"):
        monkeypatch.setattr(loss, kind, record(kind))
    value = first_loss(trainer)[0]
    assert len(pairs) == TERMS.get(method, 3)
    assert {kind for kind, _, _ in pairs} == {f"{'sigmoid' if method == 'multi_positive' else 'contrastive'}_loss"}
    images = trainer.images.load(trainer.batches.samples(0))
    image = F.normalize(images if images.ndim == 2 else trainer.towers.image(images), dim=-1)
    projected = project_on_principal_components(image, 32)
    has_components = method in ("lit_longclip", "longclip", "debias")
    torch.testing.assert_close(pairs[0][1], projected if has_components else image, rtol=0, atol=0)
    assert all(torch.equal(other, image) for _, other, _ in pairs[1:])
    # A training at its first step guesses: the limit of divergence is twice that.
    assert value.total.item() < 1.5 * trainer._loss_of_guessing()


def test_prefix_padding_moves_the_words_of_short_texts_alone_up_to_the_context(make_trainer):
    plain, padded = (
        make_trainer(method="debias", prefix_padding=padding).make_batch(0).texts for padding in (False, True)
    )
    assert (plain.ids == padded.ids).all() and plain.tokens == padded.tokens
    moves = []
    for row, texts in enumerate(padded.rows):
        for number, text in enumerate(texts):
            before, after = (each.layout.position[row][each.layout.text[row] == number] for each in (plain, padded))
            (move,) = set((after - before)[1:].tolist())
            assert after[0] == 0 and after.max() < SETTINGS["context_length"]
            assert move >= 0 and (text < SETTINGS["batch"] or move == 0)
            moves.append(move)
    assert len(set(moves)) > SETTINGS["batch"] / 2


def test_without_the_mask_corner_tokens_keep_their_loss_and_all_tokens_see_them(make_trainer, whole_batch_loss):
    trainer = make_trainer(corner_mask=False)
    assert not trainer.towers.text.settings.mask and trainer.config.corner_loss
    unmasked, _, _ = first_loss(trainer)
    masked, _ = whole_batch_loss("lotlip")
    assert unmasked.short.item() != masked.short.item()


def test_zero_sub_captions_mean_no_long_texts(make_trainer):
    value, _, _ = first_loss(make_trainer(sub_captions=0))
    assert value.long.item() == 0 and value.total.item() == value.short.item() > 0


def test_long_texts_all_uses_one_of_every_selected_captioner(make_trainer):
    trainer = make_trainer(long_texts="all")
    assert {len(text.long) for text in first_texts(trainer)} == {len(trainer.captioners)} == {3}
    assert {len(text.long) for text in first_texts(make_trainer(long_texts="all", captioners=["llava"]))} == {1}


def first_texts(trainer):
    return trainer.batches.texts(trainer.batches.samples(0))


@pytest.mark.parametrize("context", [256, 512])
def test_texts_can_be_as_long_as_the_positions_of_bert(dataset_and_towers, tmp_path, context):
    dataset, _ = dataset_and_towers
    towers = write_towers(tmp_path / "towers", positions=512)
    trainer = Trainer(
        make_config(**{**SETTINGS, **towers, "context_length": context, "sub_captions": 8}),
        dataset,
        str(tmp_path),
    )
    ids = trainer.model.tokenizer.encode(["a text " * 600]).ids
    assert len(ids[0]) == context
    assert trainer.towers.text(torch.tensor(ids)).isfinite().all()
    trainer.images.fill()
    assert first_loss(trainer)[0].total.isfinite()


def test_eight_sub_captions_are_used_where_a_text_has_as_many(make_trainer):
    three, eight = (
        [long.count(". ") for text in first_texts(make_trainer(sub_captions=count)) for long in text.long]
        for count in (3, 8)
    )
    assert max(three) == 2 < max(eight) <= 7


@pytest.mark.parametrize("corners", range(5))
@pytest.mark.parametrize("context", [32, 128])
def test_corner_tokens_and_context_length_can_be_chosen(make_trainer, corners, context):
    trainer = make_trainer(corner_tokens=corners, context_length=context)
    assert max(map(len, trainer.model.tokenizer.encode(["a text " * 200]).ids)) == context
    assert first_loss(trainer)[0].total.isfinite()


def test_bf16_computes_the_towers_in_bf16_and_keeps_weights_and_loss_in_float32(make_trainer, whole_batch_loss):
    whole, expected = whole_batch_loss("lotlip")
    trainer = make_trainer(precision="bf16")
    value, gradients, features = first_loss(trainer)
    assert features.packed.features.dtype == torch.bfloat16 and value.total.dtype == torch.float32
    assert {parameter.dtype for parameter in trainer.towers.parameters()} == {torch.float32}
    torch.testing.assert_close(value.total, whole.total, rtol=0.01, atol=0)
    name = "text.proj.weight"
    assert F.cosine_similarity(gradients[name].flatten(), expected[name].flatten(), dim=0) > 0.99


@pytest.mark.slow
def test_a_compiled_tower_gives_the_same_gradients_and_saves_the_same_names(make_trainer, whole_batch_loss):
    whole, expected = whole_batch_loss("lotlip")
    trainer = make_trainer(compile=True)
    value, gradients, _ = first_loss(trainer)
    torch.testing.assert_close(value.total, whole.total, rtol=1e-5, atol=0)
    assert_gradients_close(gradients, expected)
    assert trainer.towers.state_dict().keys() == make_trainer().towers.state_dict().keys()


def test_a_training_that_ran_out_of_memory_resumes_with_accumulation(dataset_and_towers, tmp_path, monkeypatch, caplog):
    dataset, towers = dataset_and_towers
    settings = {**SETTINGS, **towers, "epochs": 3, "checkpoint_every": 2}
    step = Trainer.step

    def fail_at_step_4(self, number, batch):
        if number == 4:
            raise TrainingDiverged("out of memory")
        return step(self, number, batch)

    monkeypatch.setattr(Trainer, "step", fail_at_step_4)
    with pytest.raises(TrainingDiverged):
        train(make_config(**settings), dataset.url, str(tmp_path / "t"))
    monkeypatch.setattr(Trainer, "step", step)
    caplog.clear()
    train(make_config(**settings, accumulate=2), dataset.url, str(tmp_path / "t"))
    assert any("resuming after step 4 of 6" in line for line in caplog.messages)

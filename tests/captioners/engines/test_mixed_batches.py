"""Batches of several texts of an image: how they are cut, and what is computed once."""

import torch

from lotlip_data.captioners.engines.mixed_batches import SharedFeatures, parts_by_image


def test_a_part_has_all_texts_of_its_images_and_no_more_images_than_it_may():
    ids = [*"aaabbbcccd"]
    assert list(parts_by_image(ids, 2)) == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9]]
    assert list(parts_by_image(ids, 4)) == [list(range(10))]
    assert list(parts_by_image(ids, 1)) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert list(parts_by_image([], 2)) == []


class Model(torch.nn.Module):
    """The outer module of a model as transformers makes it, around the one that computes."""

    class Inner(torch.nn.Module):
        calls = 0

        def get_image_features(self, pixels, sizes=None):
            self.calls += 1
            return pixels * 2

        def forward(self, pixels, sizes=None):
            return self.get_image_features(pixels, sizes=sizes)

    def __init__(self):
        super().__init__()
        self.model = self.Inner()

    def get_image_features(self, pixels, sizes=None):
        return self.model.get_image_features(pixels, sizes=sizes)


def test_features_of_equal_inputs_are_computed_once_within_a_part_only():
    model = Model()
    shared = SharedFeatures(model)
    pixels, sizes = torch.ones(2, 3), [torch.tensor([3, 4])]
    with shared.of_one_part():
        first = model.model(pixels, sizes)
        assert model.model(pixels.clone(), [torch.tensor([3, 4])]) is first
        assert model.model.calls == 1
        model.model(pixels, [torch.tensor([4, 3])])
        model.model(pixels + 1, sizes)
        model.model(pixels)
        assert model.model.calls == 4
    model.model(pixels)
    model.model(pixels)
    assert model.model.calls == 6

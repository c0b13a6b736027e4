"""Scenes and pictures are pure functions of their seeds, and the splits are disjoint."""

from itertools import combinations

import numpy as np
import pytest

from lotlip_data.synthetic.scenes import (
    BACKGROUNDS,
    COLOURS,
    PLACES,
    SHAPES,
    SIZES,
    SPLITS,
    class_names,
    render,
    sample_scene,
    single_object_scene,
)


def test_the_same_seed_gives_the_same_scene_and_the_same_pixels() -> None:
    for seed in range(50):
        scene = sample_scene(seed)
        assert scene == sample_scene(seed)
        assert render(scene).tobytes() == render(sample_scene(seed)).tobytes()


def test_scenes_hold_one_to_four_objects_in_different_cells_in_reading_order_and_use_every_value() -> None:
    scenes = [sample_scene(seed) for seed in range(2000)]
    for scene in scenes:
        cells = [PLACES.index(obj.place) for obj in scene.objects]
        assert 1 <= len(cells) <= 4
        assert cells == sorted(set(cells))
    objects = [obj for scene in scenes for obj in scene.objects]
    assert {obj.colour for obj in objects} == set(COLOURS)
    assert {obj.shape for obj in objects} == set(SHAPES)
    assert {obj.size for obj in objects} == set(SIZES)
    assert {obj.place for obj in objects} == set(PLACES)
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)


@pytest.mark.parametrize("pixels", [96, 200])
def test_only_the_cells_of_objects_differ_from_the_background(pixels: int) -> None:
    for seed in range(100):
        scene = sample_scene(seed)
        picture = np.asarray(render(scene, pixels)).astype(int)
        edges = np.linspace(0, pixels, 4).astype(int)
        occupied = set()
        assert picture.shape == (pixels, pixels, 3)
        for index, place in enumerate(PLACES):
            row, column = divmod(index, 3)
            cell = picture[edges[row] + 1 : edges[row + 1] - 1, edges[column] + 1 : edges[column + 1] - 1]
            if np.ptp(cell.reshape(-1, 3), axis=0).max() > 0:
                occupied.add(place)
        assert occupied == {obj.place for obj in scene.objects}


def test_pictures_of_equal_objects_differ_between_seeds() -> None:
    pictures = {render(single_object_scene(seed, "red", "star")).tobytes() for seed in range(50)}
    assert len(pictures) == 50


def test_no_seed_is_in_two_splits() -> None:
    for left, right in combinations(SPLITS.values(), 2):
        assert left.stop <= right.start or right.stop <= left.start


def test_a_single_object_scene_has_the_colour_and_shape_of_its_class() -> None:
    assert len(set(class_names())) == 64
    for name in class_names():
        (obj,) = single_object_scene(7, *name.split()).objects
        assert f"{obj.colour} {obj.shape}" == name
    with pytest.raises(ValueError, match="no class 'red' 'cube'"):
        single_object_scene(7, "red", "cube")

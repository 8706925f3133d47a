import hashlib
from collections import Counter

import numpy as np
import pytest
import torch

from graft.compositions import (
    COLOURS,
    COMPOSITIONS,
    DARKEST,
    KIND_SHARES,
    OBJECTS,
    RELATIONS,
    Composition,
    colour_of,
    contradiction,
    correct,
    draw_compositions,
    held_out,
    object_crops,
    parse,
    render,
)
from graft.errors import UserError

SIZE = 16

EXAMPLES = {
    "a red three": Composition((("red", 3),), None),
    "a blue seven left of a green two": Composition((("blue", 7), ("green", 2)), "left of"),
    "a red one above a yellow four": Composition((("red", 1), ("yellow", 4)), "above"),
}


def tile_of(digit):
    """A stand-in for handwriting, 8 x 8: a line, and the digit as numbers of bright pixels in two rows below it."""
    tile = np.zeros((8, 8))
    tile[2, :] = 1
    tile[5, : digit % 5] = 1
    tile[6, : digit // 5] = 1
    return tile


TEMPLATES = torch.from_numpy(np.stack([tile_of(digit) for digit in range(10)]))


def classify(tiles):
    """The digits that these stand for, or -1."""
    same = (tiles == (TEMPLATES * 255).byte()).all(dim=(2, 3))
    return torch.where(same.any(dim=1), same.byte().argmax(dim=1), -1)


def picture(composition):
    return render(composition, np.stack([tile_of(digit) for _, digit in composition.objects]), SIZE)


def pictures(compositions):
    return np.stack([picture(composition) for composition in compositions])


def side(held):
    return {composition for composition in COMPOSITIONS.values() if held_out(composition) == held}


@pytest.mark.parametrize("caption", EXAMPLES)
def test_captions(caption):
    assert EXAMPLES[caption].caption == caption
    assert parse(caption) == EXAMPLES[caption]


def test_kinds():
    assert [composition.kind for composition in EXAMPLES.values()] == ["single", "left of", "above"]


def test_every_composition_has_a_sentence_of_its_own():
    assert Counter(composition.kind for composition in COMPOSITIONS.values()) == {
        "single": 40,
        "left of": 1600,
        "above": 1600,
    }
    assert len(set(COMPOSITIONS.values())) == 3240
    assert all(parse(composition.caption) == composition for composition in COMPOSITIONS.values())


@pytest.mark.parametrize(
    "caption",
    ["", "red three", "a red ten", "a pink two", "a red one below a blue two", "a red one left of", "A red one"],
)
def test_other_sentences_are_refused(caption):
    with pytest.raises(UserError, match=f"prompt '{caption}'"):
        parse(caption)


@pytest.mark.parametrize("kind", KIND_SHARES)
def test_fifteen_percent_of_each_kind_are_held_out(kind):
    sides = [held_out(composition) for composition in COMPOSITIONS.values() if composition.kind == kind]
    assert sum(sides) == 0.15 * len(sides)


def test_what_is_held_out_never_changes():
    """It is part of shipped models: they were trained without these."""
    captions = "\n".join(sorted(composition.caption for composition in side(True)))
    assert (
        hashlib.sha256(captions.encode()).hexdigest()
        == "991c6e679f5beb80eb57b19a36125d18ffdc5635cf1b375df9b52c13a49d7e3e"
    )


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("relation", RELATIONS)
def test_training_pairs_hold_every_object_at_every_place(relation, place):
    training = side(False)
    assert {pair.objects[place] for pair in training if pair.relation == relation} == set(OBJECTS)


def test_training_singles_hold_every_colour_and_every_digit():
    colours, digits = zip(*(single.objects[0] for single in side(False) if single.kind == "single"), strict=True)
    assert set(colours) == set(COLOURS)
    assert set(digits) == set(range(10))


@pytest.mark.parametrize("held", [False, True])
def test_drawn_compositions_are_of_the_wanted_side_and_kinds(held):
    drawn = draw_compositions(np.random.default_rng(0), 8000, held_out=held)
    assert set(drawn) <= side(held)
    kinds = Counter(composition.kind for composition in drawn)
    for kind, share in KIND_SHARES.items():
        assert kinds[kind] == pytest.approx(8000 * share, abs=4 * (8000 * share * (1 - share)) ** 0.5)


def test_compositions_of_a_kind_are_drawn_uniformly():
    singles = Counter(
        found for found in draw_compositions(np.random.default_rng(0), 8000, False) if found.kind == "single"
    )
    expected = singles.total() / 34
    assert len(singles) == 34
    chi_square = sum((count - expected) ** 2 / expected for count in singles.values())
    assert chi_square < 33 + 4 * 66**0.5


def test_draws_depend_on_the_generator_alone():
    first, again, other = (draw_compositions(np.random.default_rng(seed), 50, False) for seed in (0, 0, 1))
    assert first == again != other


def change(before, after):
    """Which one thing differs; None if more than one does."""
    if before.relation != after.relation:
        return "relation" if before.objects == after.objects else None
    if after.objects == before.objects[::-1]:
        return "objects"
    differing = [
        (name, i)
        for i, (old, new) in enumerate(zip(before.objects, after.objects, strict=True))
        for name, k in (("colour", 0), ("digit", 1))
        if old[k] != new[k]
    ]
    if [name for name, _ in differing] == ["colour", "colour"]:
        swapped = [colour for colour, _ in after.objects] == [colour for colour, _ in before.objects[::-1]]
        return "colours" if swapped else None
    return differing[0][0] if len(differing) == 1 else None


def test_contradictions_change_one_thing():
    rng = np.random.default_rng(0)
    drawn = [c for held in (False, True) for c in draw_compositions(rng, 3000, held)]
    changes = {"single": Counter(), "left of": Counter(), "above": Counter()}
    for composition in drawn:
        other = contradiction(composition, rng)
        assert other != composition
        assert parse(other.caption) == other
        changes[composition.kind][change(composition, other)] += 1
    assert changes["single"].keys() == {"colour", "digit"}
    for relation in RELATIONS:
        counts = changes[relation]
        assert counts.keys() == {"colour", "digit", "colours", "objects", "relation"}
        assert min(counts.values()) > 0.12 * counts.total()


def test_what_is_in_training_is_contradicted_by_what_is_in_training():
    rng = np.random.default_rng(0)
    assert not any(held_out(contradiction(composition, rng)) for composition in draw_compositions(rng, 2000, False))
    assert any(held_out(contradiction(composition, rng)) for composition in draw_compositions(rng, 200, True))


@pytest.mark.parametrize(
    ("caption", "corners"),
    [
        ("a red three", [(4, 4)]),
        ("a blue seven left of a green two", [(4, 0), (4, 8)]),
        ("a red one above a yellow four", [(0, 4), (8, 4)]),
    ],
)
def test_objects_stand_at_their_places_in_their_colours(caption, corners):
    composition = parse(caption)
    tiles = np.random.default_rng(0).random((len(corners), 8, 8))
    image = render(composition, tiles, SIZE)
    expected = np.zeros((3, SIZE, SIZE))
    for (colour, _), tile, (top, left) in zip(composition.objects, tiles, corners, strict=True):
        expected[:, top : top + 8, left : left + 8] = tile * np.array(COLOURS[colour])[:, None, None]
    assert image.dtype == np.uint8
    assert np.abs(image - expected).max() <= 0.5


@pytest.mark.parametrize("objects", [1, 3])
def test_each_object_needs_its_tile(objects):
    with pytest.raises(ValueError, match="zip"):
        render(parse("a red one above a yellow four"), np.zeros((objects, 8, 8)), SIZE)


def test_canvas_must_have_whole_quarters():
    with pytest.raises(ValueError, match="canvas of side 18"):
        parse("a red one").places(18)


def test_crops_are_the_tiles_that_were_rendered():
    compositions = list(EXAMPLES.values())
    tiles, colours = object_crops(pictures(compositions), compositions)
    assert tiles.dtype == torch.uint8
    assert torch.equal(tiles[:, 0].double() / 255, TEMPLATES[[3, 7, 2, 1, 4]])
    assert colours == ["red", "blue", "green", "red", "yellow"]


@pytest.mark.parametrize("colour", COLOURS)
def test_colour_is_that_of_the_bright_pixels_whatever_their_brightness(colour):
    """A faint background of another colour covers most of the tile."""
    other = "green" if colour == "blue" else "blue"
    for brightness in (0.4, 1):
        tile = np.array(COLOURS[other])[:, None, None] * np.full((8, 8), 0.1)
        tile[:, 2:4, 2:6] = np.array(COLOURS[colour])[:, None, None] * brightness
        assert colour_of(tile.astype(np.uint8)) == colour


@pytest.mark.parametrize(
    ("rgb", "expected"),
    [
        ((200, 60, 60), "red"),
        ((200, 160, 20), "yellow"),
        ((40, 90, 200), "blue"),
        ((80, 200, 40), "green"),  # yellow from tan 22.5 degrees * 200 = 83 on
        ((86, 200, 40), "yellow"),
    ],
)
def test_impure_colours_are_taken_for_the_nearest_in_direction(rgb, expected):
    assert colour_of(np.full((8, 8, 3), rgb, np.uint8).transpose(2, 0, 1)) == expected


def test_pictures_show_their_compositions():
    compositions = draw_compositions(np.random.default_rng(0), 300, False)
    shown = correct(pictures(compositions), compositions, classify)
    assert shown.dtype == bool
    assert shown.shape == (300,)
    assert shown.all()


def test_pictures_do_not_show_what_contradicts_their_compositions():
    rng = np.random.default_rng(0)
    compositions = [c for held in (False, True) for c in draw_compositions(rng, 500, held)]
    wrong = [contradiction(composition, rng) for composition in compositions]
    assert not correct(pictures(compositions), wrong, classify).any()


def test_only_pictures_with_a_wrong_object_are_wrong():
    captions = ["a red one", "a red one left of a green two", "a red one left of a green two", "a blue six"]
    wanted = ["a red one", "a red one left of a blue two", "a red one left of a green two", "a blue seven"]
    shown = correct(pictures(map(parse, captions)), [parse(caption) for caption in wanted], classify)
    assert shown.tolist() == [True, False, True, False]


@pytest.mark.parametrize(("brightest", "expected"), [(DARKEST, True), (DARKEST - 1, False)])
def test_dark_places_show_nothing(brightest, expected):
    composition = parse("a red three above a red three")
    image = picture(composition)
    image[:, 8:][image[:, 8:] > 0] = brightest
    shown = correct(image[None], [composition], lambda tiles: torch.full((len(tiles),), 3))
    assert shown.tolist() == [expected]

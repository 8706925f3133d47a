"""Page layouts as points of a diffusion and back, their conditions, rewards and metrics, and the network behind FD."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import ImageColor

from graft.errors import UserError
from graft.layout_formats import CLASSES
from graft.metrics.layouts import alignment, overlap
from graft.networks import layout_features
from graft.networks.layout_features import LayoutFeatures, disturb, layout_features_loss, tells_disturbed
from graft.objectives import FocusedTimes
from graft.rollouts import SamplerSettings, roll_out
from graft.seeding import ChunkedNormal, Draw, drawn_weights
from graft.shards import write_tensors
from graft.tasks.layouts import COLOURS, GRID, PICTURE, Layouts, Pages, pages
from graft.training import TrainingSettings, train

DRAWN, GIVEN = Layouts(max_elements=6, rollouts_per_condition=None), Layouts(max_elements=6, rollouts_per_condition=4)
BOTH = pytest.mark.parametrize("task", [DRAWN, GIVEN], ids=["classes_drawn", "classes_given"])
SIZES = {"width": 16, "depth": 2, "heads": 2}
TEXT, TITLE, LIST, TABLE, FIGURE = range(1, 6)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def some_pages(count, seed=0, fewest=1, most=6):
    """Random boxes within the page and random classes, padded with zeros to 6 elements."""
    rng = generator(seed)
    mask = torch.arange(6) < torch.randint(fewest, most + 1, (count, 1), generator=rng)
    size = 0.1 + 0.5 * torch.rand(count, 6, 2, generator=rng)
    centre = size / 2 + (1 - size) * torch.rand(count, 6, 2, generator=rng)
    classes = torch.randint(1, len(CLASSES) + 1, (count, 6), generator=rng)
    return Pages(torch.cat([centre, size], dim=-1) * mask[..., None], classes * mask)


def some_condition(task, count=8, seed=0):
    return task.condition_of(some_pages(count, seed).classes)


def some_points(task, count=8, seed=0):
    """Noise where there are elements."""
    return task.project(torch.randn(count, *task.shape, generator=generator(seed)), some_condition(task, count, seed))


def trained_looking(task, seed=0):
    """A network with no layer at zero, so that every input and every part shows in its output."""
    network, rng = task.build_network(SIZES, seed=0, run=0), generator(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=rng))
    return network.eval().requires_grad_(False)


def corners(boxes):
    """The left and top, and the right and bottom edges of boxes (..., 4)."""
    return boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2


@BOTH
def test_encoded_pages_come_back(task):
    found = some_pages(50)
    x_0 = task.encode(found.boxes, found.classes.to(torch.uint8))
    assert x_0.shape == (50, *task.shape)
    back = task.decode(x_0, task.condition_of(found.classes))
    torch.testing.assert_close(back.boxes, found.boxes, rtol=0, atol=1e-6)
    assert torch.equal(back.classes, found.classes)
    assert torch.equal(back.mask, found.classes > 0)


def test_a_point_holds_edges_about_the_middle_of_the_page_and_one_hot_classes():
    boxes, classes = torch.zeros(1, 6, 4), torch.zeros(1, 6, dtype=torch.long)
    boxes[0, 0], classes[0, 0] = torch.tensor([0.5, 0.25, 1.0, 0.5]), TABLE
    assert DRAWN.encode(boxes, classes)[0, 0].tolist() == [-2, -2, 2, 0, 0, 0, 0, 1, 0]
    assert GIVEN.encode(boxes, classes)[0, 0].tolist() == [-2, -2, 2, 0]
    assert not DRAWN.encode(boxes, classes)[0, 1:].any()


@BOTH
def test_edges_are_put_in_order_and_cut_off_at_the_page(task):
    x_0 = torch.zeros(1, *task.shape)
    left, top, right, bottom = 0.7, 1.4, 0.2, -0.3
    x_0[0, 0, :4] = 4 * (torch.tensor([left, top, right, bottom]) - 0.5)
    page = task.decode(x_0, task.condition_of(torch.tensor([[TEXT, 0, 0, 0, 0, 0]])))
    torch.testing.assert_close(page.boxes[0, 0], torch.tensor([0.45, 0.5, 0.5, 1.0]), rtol=0, atol=1e-6)
    far = task.decode(x_0 + 100, task.condition_of(torch.tensor([[TEXT, 0, 0, 0, 0, 0]])))
    assert far.boxes[0, 0].tolist() == [1, 1, 0, 0]


@BOTH
def test_rows_beyond_the_elements_never_matter(task):
    """Whatever stands there, in pages or in points."""
    found, condition = some_pages(8, most=4), some_condition(task)
    wild = found.boxes.where(found.mask[..., None], 37.0)
    assert torch.equal(task.encode(wild, found.classes), task.encode(found.boxes, found.classes))
    network = trained_looking(task)
    losses = [task.loss(network, boxes, found.classes, generator(1)) for boxes in (wild, found.boxes)]
    assert losses[0] == losses[1]
    x, t, mask = some_points(task), torch.linspace(0.05, 1, 8), task.mask(condition)
    assert not mask.all()
    garbage = x.where(mask[..., None], 37.0)
    assert torch.equal(task.project(garbage, condition), x)
    expected = task.denoiser(network, condition)(x, t)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(task.denoiser(network, condition)(garbage, t), expected, rtol=0, atol=1e-5)
    decoded = task.decode(garbage, condition)
    assert all(torch.equal(*parts) for parts in zip(decoded, task.decode(x, condition), strict=True))
    assert not decoded.boxes[~mask].any()
    assert not decoded.classes[~mask].any()


def drawn_by(task, network, condition, cpu, stops=()):
    """Samples (128, N, 4 + K) of a network by the stochastic sampler, and the states at `stops`."""
    normal = ChunkedNormal(0, Draw.ROLLOUT, start=0, stop=128, shape=task.shape)
    settings = SamplerSettings(steps=4, shift=1.0, eta=1.0, batch_size=128)
    return roll_out(task, network, network, 0, settings, condition, normal, cpu, stops)


@pytest.mark.parametrize("size", [1.0, 1e4])
def test_given_classes_come_out_exactly_as_given_whatever_the_network_says(cpu, size):
    network, condition = trained_looking(GIVEN), some_condition(GIVEN, 128)
    before = condition["classes"].clone()
    x_0 = drawn_by(GIVEN, lambda *arguments: size * network(*arguments), condition, cpu)[0]
    assert x_0.shape == (128, 6, 4)
    page = GIVEN.decode(x_0, condition)
    assert torch.equal(page.classes, before)
    assert page.boxes.isfinite().all()
    assert page.boxes[page.mask].std(dim=0)[:2].min() > 0.01, "the boxes are not given"


def test_drawn_pages_have_the_number_of_elements_that_was_asked_for(cpu):
    condition = some_condition(DRAWN, 128)
    states = drawn_by(DRAWN, trained_looking(DRAWN), condition, cpu, stops=[2])
    page = DRAWN.decode(states[0], condition)
    assert torch.equal(page.mask.sum(dim=1), condition["elements"])
    assert len(page.classes[page.mask].unique()) > 1
    assert all(not states[index][~DRAWN.mask(condition)].any() for index in (0, 2)), "nor has padding noise"


def test_the_network_is_given_the_classes_as_they_are_at_every_time():
    """One-hot, beside the scaled edges: neither scaled nor noised."""
    condition, x, t, seen = some_condition(GIVEN), some_points(GIVEN), torch.linspace(0.01, 1, 8), {}

    def network(sample, times, mask):
        seen.update(sample=sample, times=times, mask=mask)
        return torch.zeros(*sample.shape[:2], 4)

    found = GIVEN.denoiser(network, condition)(x, t)
    alpha, sigma = (1 - t)[:, None, None], t[:, None, None]
    scale = (alpha**2 + sigma**2).rsqrt()
    torch.testing.assert_close(seen["sample"][..., :4], x * scale, rtol=1e-6, atol=1e-6)
    numbers = torch.arange(1, len(CLASSES) + 1)
    assert torch.equal(seen["sample"][..., 4:], (condition["classes"][..., None] == numbers).float())
    assert torch.equal(seen["times"], t)
    assert torch.equal(seen["mask"], condition["classes"] > 0)
    torch.testing.assert_close(found, alpha * scale**2 * x, rtol=1e-6, atol=1e-6)


def test_drawn_classes_are_noised_and_come_out_as_probabilities():
    condition, x, seen = some_condition(DRAWN), some_points(DRAWN), {}

    def network(sample, times, mask):
        seen.update(sample=sample)
        return torch.zeros_like(sample)

    found = DRAWN.denoiser(network, condition)(x, torch.full((8,), 0.5))
    torch.testing.assert_close(seen["sample"], x * math.sqrt(2), rtol=1e-6, atol=1e-6)
    probabilities = found[..., 4:][DRAWN.mask(condition)]
    torch.testing.assert_close(probabilities, torch.full_like(probabilities, 0.2))


@BOTH
def test_the_network_ignores_padding(task):
    """The same elements, with more padding or less, and whatever the other samples are."""
    network, condition, t = trained_looking(task), some_condition(task), torch.linspace(0.05, 1, 8)
    x, mask = task.network_input(some_points(task), condition), task.mask(condition)
    expected = network(x, t, mask)
    assert expected.abs().max() > 0.1
    assert not expected[~mask].any()
    three = mask.sum(dim=1) <= 3
    assert 0 < three.sum() < 8
    shorter = network(x[three, :3], t[three], mask[three, :3])
    torch.testing.assert_close(shorter, expected[three, :3], rtol=0, atol=1e-5)


@BOTH
def test_without_its_index_embedding_the_network_does_not_see_the_order_of_elements(task):
    network, condition, t = trained_looking(task), some_condition(task), torch.linspace(0.05, 1, 8)
    x, mask = task.network_input(some_points(task), condition), task.mask(condition)
    order = torch.tensor([3, 5, 0, 1, 4, 2])

    def permuted_output_differs_by():
        expected = network(x, t, mask)[:, order]
        return (network(x[:, order], t, mask[:, order]) - expected).abs().max().item()

    assert permuted_output_differs_by() > 0.01
    network.index.zero_()
    assert permuted_output_differs_by() < 1e-5


@BOTH
@pytest.mark.parametrize("times", [None, FocusedTimes(0.1, 1.0, 0.2)], ids=["uniform", "focused"])
def test_loss_at_cut_0_is_plain_denoising(task, times):
    """Recomputed from the same numbers: noise where there are elements, then stratified times; nothing is turned."""
    found, network = some_pages(8), trained_looking(task)
    loss = task.loss(network, found.boxes, found.classes, generator(3), times)
    rng, condition, x_0 = generator(3), task.condition_of(found.classes), task.encode(found.boxes, found.classes)
    noise = torch.randn(x_0.shape, generator=rng) * found.mask[..., None]
    t = (torch.rand(1, generator=rng) + torch.arange(8) / 8) % 1
    t = times.above(0.0, t) if times else t
    x_t = (1 - t)[:, None, None] * x_0 + t[:, None, None] * noise
    error = (task.denoiser(network, condition)(x_t, t) - x_0).square()
    weights = ((1 - t) ** 2 + t**2) / t**2
    expected = (error[..., :4] * weights[:, None, None]).sum() + error[..., 4:].sum()
    assert loss.item() == pytest.approx(expected.item() / x_0.numel(), rel=1e-5)
    assert torch.equal(task.denoising_loss(network, x_0, 0.0, condition, generator(3), times), loss)


@pytest.mark.parametrize(
    ("saved", "wanted", "message"),
    [
        (DRAWN, GIVEN, "(6, 9, 4)"),
        (GIVEN, DRAWN, "(6, 9, 9)"),
        (Layouts(7, None), DRAWN, "(6, 9, 9)"),
    ],
)
def test_a_network_for_other_points_is_refused_in_one_line(tmp_path, saved, wanted, message):
    saved.build_network(SIZES, seed=0, run=0).save_pretrained(tmp_path / "model")
    with pytest.raises(UserError) as error:
        wanted.load_network(tmp_path / "model")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    saved.load_network(tmp_path / "model")


def prepared(folder, training, held_out):
    """A prepared data folder in two shards, pages of both splits in both."""
    folder.mkdir()
    boxes, classes = (torch.cat(parts) for parts in zip(training, held_out, strict=True))
    out = torch.arange(len(boxes)) >= len(training.boxes)
    order = torch.randperm(len(boxes), generator=generator(9))
    for shard, rows in enumerate(order.tensor_split(2)):
        tensors = {"boxes": boxes[rows], "classes": classes[rows].to(torch.uint8), "held_out": out[rows]}
        write_tensors(folder / f"shard{shard}.safetensors", tensors, {})
    (folder / "data.json").write_text(json.dumps({"shards": 2}))
    return folder


@pytest.fixture
def folder(tmp_path):
    """40 training pages of 1 to 4 elements, 30 held-out ones of 5 or 6."""
    return prepared(tmp_path / "data", some_pages(40, seed=1, most=4), some_pages(30, seed=2, fewest=5))


@pytest.mark.parametrize("stage", [(Draw.ROLLOUT, 1), (Draw.POLICY, 1, 0), (Draw.EVALUATION, 0)])
def test_numbers_of_elements_have_the_histogram_of_the_training_pages(folder, stage):
    """In the evaluation too; the same in one shard or in several."""
    elements = DRAWN.conditions(folder, 0, Draw.CONDITION, *stage, start=0, stop=6400)["elements"]
    counts = some_pages(40, seed=1, most=4).mask.sum(dim=1).bincount(minlength=7)
    expected = counts / 40 * 6400
    assert (elements.bincount(minlength=7) - expected).abs().max() < 4.5 * math.sqrt(6400 / 4)
    assert not elements.bincount(minlength=7)[counts == 0].any()
    parts = [(0, 64), (64, 192), (192, 6400)]
    sharded = [DRAWN.conditions(folder, 0, Draw.CONDITION, *stage, start=start, stop=stop) for start, stop in parts]
    assert torch.equal(torch.cat([part["elements"] for part in sharded]), elements)
    assert DRAWN.describe({"elements": elements})["mean_elements"] == pytest.approx(elements.double().mean().item())
    assert DRAWN.group({"elements": elements}).tolist() == [0] * 6400


@pytest.mark.parametrize(
    ("stage", "length", "held_out"),
    [((Draw.ROLLOUT, 1), 4, False), ((Draw.POLICY, 1, 0), 4, False), ((Draw.EVALUATION, 0), 1, True)],
)
def test_given_classes_are_those_of_pages_in_runs(folder, stage, length, held_out):
    """Four rollouts of each training page in turn, one sample of each held-out page; then the same pages again."""
    classes = pages(str(folder), held_out=held_out)[1].long()
    assert len(classes) == (30 if held_out else 40)
    count = 2 * length * len(classes)
    found = GIVEN.conditions(folder, 0, Draw.CONDITION, *stage, start=0, stop=count)
    assert torch.equal(found["classes"], classes[found["page"]])
    runs = found["page"].reshape(2 * len(classes), length)
    assert (runs == runs[:, :1]).all()
    once, again = runs[:, 0].chunk(2)
    assert sorted(once.tolist()) == list(range(len(classes)))
    assert once.tolist() != sorted(once.tolist()), "in a random order"
    assert torch.equal(once, again)
    assert torch.equal(GIVEN.group(found), found["page"])
    later = GIVEN.conditions(folder, 0, Draw.CONDITION, *stage, start=5, stop=count)
    assert all(torch.equal(later[name], found[name][5:]) for name in found)
    mean = (found["classes"] > 0).sum(dim=1).double().mean().item()
    assert GIVEN.describe(found)["mean_elements"] == pytest.approx(mean)


@BOTH
def test_seeds_rounds_and_iterations_have_conditions_of_their_own(folder, task):
    draws = [(0, Draw.ROLLOUT, 1), (0, Draw.ROLLOUT, 2), (1, Draw.ROLLOUT, 1), (0, Draw.POLICY, 1, 0)]
    draws += [(0, Draw.POLICY, 1, 1), (0, Draw.EVALUATION, 0)]
    found = [task.conditions(folder, seed, Draw.CONDITION, *stage, start=0, stop=128) for seed, *stage in draws]
    sizes = {tuple(task.mask(condition).sum(dim=1).tolist()) for condition in found}
    assert len(sizes) == len(draws)


@pytest.mark.parametrize(("held_out", "message"), [(True, "held out to evaluate on"), (False, "left to train on")])
def test_an_empty_split_is_one_clear_line(tmp_path, held_out, message):
    one = some_pages(3)
    none = Pages(one.boxes[:0], one.classes[:0])
    folder = prepared(tmp_path / "data", *((one, none) if held_out else (none, one)))
    with pytest.raises(UserError) as error:
        pages(str(folder), held_out)
    assert str(error.value).startswith(f"{folder}: no page is {message}; ")
    assert "\n" not in str(error.value)
    assert len(pages(str(folder), not held_out)[0]) == 3


def aligned_and_overlapping():
    """Nearest lines 0.05 apart, a common area of 0.03 with areas of 0.16 and 0.08; a page with one element."""
    boxes, classes = torch.zeros(2, 6, 4), torch.zeros(2, 6, dtype=torch.long)
    boxes[0, :2] = torch.tensor([[0.2, 0.2, 0.4, 0.4], [0.4, 0.35, 0.4, 0.2]])
    boxes[1, 0] = torch.tensor([0.5, 0.5, 0.3, 0.3])
    classes[0, :2], classes[1, 0] = torch.tensor([FIGURE, TEXT]), LIST
    return Pages(boxes, classes)


def reward(samples, cpu, function="tidiness", judge=None, **weights):
    settings = {"function": function, "weights": {"alignment": 1.0, "overlap": 3.0, "realism": 0.0, **weights}}
    return DRAWN.rewards(samples, {**settings, "judge": judge, "batch_size": 7}, cpu)


def test_tidiness_is_minus_the_weighted_sum_of_alignment_and_overlap(cpu):
    found = reward(aligned_and_overlapping(), cpu, alignment=0.5, overlap=2.0)
    assert found.dtype == np.float64
    by_hand = -(0.5 * 100 * -math.log(0.95) + 2.0 * (0.03 / 0.16 + 0.03 / 0.08) / 2)
    np.testing.assert_allclose(found, [by_hand, 0], rtol=1e-5)
    samples = some_pages(20)
    expected = -(100 * alignment(samples.boxes, samples.mask) + 3 * overlap(samples.boxes, samples.mask))
    np.testing.assert_allclose(reward(samples, cpu), expected, rtol=1e-6)


def test_realism_adds_the_log_odds_under_the_judge_of_the_reward(tmp_path, cpu):
    judge, samples = features(seed=5), some_pages(20)
    judge.save_pretrained(tmp_path / "reward")
    states = judge(*samples, hidden=torch.zeros_like(samples.mask))[0]
    real = torch.sigmoid(judge.real(states).flatten().double())
    by_hand = reward(samples, cpu) + 0.5 * torch.log(real / (1 - real)).detach().numpy()
    found = reward(samples, cpu, judge=tmp_path / "reward", realism=0.5)
    np.testing.assert_allclose(found, by_hand, rtol=1e-5, atol=1e-6)
    assert np.ptp(found - reward(samples, cpu)) > 1e-3, "pages differ in it"


def test_a_users_reward_gets_boxes_and_class_names_of_the_elements_alone(tmp_path, monkeypatch, cpu):
    (tmp_path / "layout_reward_of_a_user.py").write_text(
        "import numpy as np\n"
        "def figures(boxes, names):\n"
        "    assert isinstance(boxes, np.ndarray) and boxes.shape == (len(names), 4)\n"
        "    if len(names) > 5:\n"
        "        raise ValueError('a crowded page')\n"
        "    return 100 * sum(name == 'figure' for name in names) + boxes[:, 2].sum()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    samples = some_pages(20)
    # An element in the middle of the padding is one all the same.
    samples.boxes[0, 1:], samples.classes[0, 1:] = 0, 0
    samples.boxes[0, 3], samples.classes[0, 3] = torch.tensor([0.5, 0.5, 0.25, 0.1]), FIGURE
    found = reward(samples, cpu, "layout_reward_of_a_user:figures")
    expected = 100 * (samples.classes == FIGURE).sum(dim=1) + samples.boxes[..., 2].sum(dim=1)
    crowded = (samples.mask.sum(dim=1) > 5).numpy()
    assert 0 < crowded.sum() < 20
    assert np.isnan(found[crowded]).all()
    np.testing.assert_allclose(found[~crowded], expected[~crowded], rtol=1e-6)


def test_keys_are_the_same_for_the_same_boxes_on_a_grid_in_any_order():
    samples = some_pages(20)
    near, far = corners(samples.boxes * samples.mask[..., None])
    near, far = (near * GRID).round() / GRID, (far * GRID).round() / GRID
    on_grid = Pages(torch.cat([(near + far) / 2, far - near], dim=-1), samples.classes)
    keys = DRAWN.sample_keys(on_grid)
    back = DRAWN.decode(DRAWN.encode(*on_grid), DRAWN.condition_of(on_grid.classes))
    assert DRAWN.sample_keys(back) == keys, "centres lie on half steps of the grid, edges do not"
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    assert DRAWN.sample_keys(Pages(*(part[:, order] for part in on_grid))) == keys
    shift = 0.4 / GRID * torch.where(torch.rand(2, 20, 6, 2, generator=generator(1)) < 0.5, 1, -1)
    moved = torch.cat([(near + far + shift.sum(dim=0)) / 2, far - near + shift[1] - shift[0]], dim=-1)
    assert DRAWN.sample_keys(Pages(moved, on_grid.classes)) == keys, "padding does not matter either"
    assert len(set(keys)) == 20
    assert DRAWN.sample_keys(Pages(on_grid.boxes.where(on_grid.mask[..., None], 0.7), on_grid.classes)) == keys
    for channel in range(4):
        moved = on_grid.boxes.clone()
        moved[:, 0, channel] += 2 / GRID
        assert not set(DRAWN.sample_keys(Pages(moved, on_grid.classes))) & set(keys), channel
    other = on_grid.classes.clone()
    other[:, 0] = other[:, 0] % len(CLASSES) + 1
    assert not set(DRAWN.sample_keys(Pages(on_grid.boxes, other))) & set(keys)


def features(seed=0, width=16):
    with drawn_weights(seed, 0):
        return LayoutFeatures(len(CLASSES), width=width, depth=2, heads=2).eval()


@pytest.fixture
def reference(folder, tmp_path, cpu):
    features().save_pretrained(tmp_path / "features")
    return DRAWN.reference(folder, {"features": tmp_path / "features", "batch_size": 7}, cpu)


def test_the_held_out_pages_themselves_are_not_measured_against_themselves(folder, reference):
    held_out = DRAWN.real(folder, 10, seed=0)["data_test"]
    found = DRAWN.metrics(held_out, reference)
    assert found == {
        "alignment_x100": pytest.approx(100 * alignment(held_out.boxes, held_out.mask).mean().item()),
        "overlap": pytest.approx(overlap(held_out.boxes, held_out.mask).mean().item()),
    }


def test_other_pages_have_maximum_iou_and_fd_too(reference):
    """The held-out pages in another order are as near as can be; pages of other boxes are further."""
    boxes, classes = (part.flip(0) for part in reference["pages"])
    found = DRAWN.metrics(Pages(boxes, classes), reference)
    assert found.keys() == {"alignment_x100", "overlap", "maximum_iou", "fd_layout_network"}
    assert found["maximum_iou"] == pytest.approx(1)
    assert found["fd_layout_network"] == pytest.approx(0, abs=1e-4)
    other = DRAWN.metrics(Pages(boxes * torch.tensor([1.0, 1.0, 0.3, 0.3]), classes), reference)
    assert other["maximum_iou"] < 0.5
    assert other["fd_layout_network"] > 10 * abs(found["fd_layout_network"])
    assert set(DRAWN.lower_is_better) == found.keys() - {"maximum_iou"}


def test_real_pages_are_as_many_training_pages_as_asked_for_and_all_held_out_ones(folder):
    training, held_out = (pages(str(folder), held_out=held_out) for held_out in (False, True))
    found = DRAWN.real(folder, 15, seed=3)
    assert found.keys() == {"data_train", "data_test"}
    assert all(torch.equal(*parts) for parts in zip(found["data_test"], held_out, strict=True))
    assert len(found["data_train"].boxes) == len(set(DRAWN.sample_keys(found["data_train"]))) == 15
    assert set(DRAWN.sample_keys(found["data_train"])) < set(DRAWN.sample_keys(Pages(*training)))
    assert torch.equal(DRAWN.real(folder, 15, seed=3)["data_train"].boxes, found["data_train"].boxes)
    assert not torch.equal(DRAWN.real(folder, 15, seed=4)["data_train"].boxes, found["data_train"].boxes)


def test_a_picture_shows_pages_side_by_side_each_class_in_its_colour():
    boxes, classes = torch.zeros(2, 6, 4), torch.zeros(2, 6, dtype=torch.long)
    for row in range(5):
        boxes[0, row], classes[0, row] = torch.tensor([0.5, 0.1 + 0.2 * row, 0.8, 0.1]), row + 1
    sheet = DRAWN.picture(Pages(boxes, classes), 3)
    width, height = PICTURE
    assert sheet.size == (3 * width, height)
    pixels = np.asarray(sheet)
    for row, name in enumerate(CLASSES):
        # Along a line down the middle of a box: its outline in its colour, which is lighter within.
        line = pixels[:, 53].astype(int)
        colour = np.array(ImageColor.getrgb(COLOURS[name]))
        outline = np.flatnonzero((line == colour).all(axis=1))
        start, end = outline.min(), outline.max()
        assert start == pytest.approx(3 + (0.05 + 0.2 * row) * (height - 7), abs=1), name
        assert end == pytest.approx(3 + (0.15 + 0.2 * row) * (height - 7), abs=1), name
        within = line[(start + end) // 2]
        assert (within >= colour).all(), name
        assert within.sum() > colour.sum(), name
    assert len(set(COLOURS.values())) == len(CLASSES)
    empty = pixels[4 : height - 4, width + 4 : 2 * width - 4]
    assert (empty == 255).all(), "a page without elements"
    assert (pixels[:, 2 * width :] == 255).all(), "no page"
    assert not (pixels[height // 2, width + 3] == 255).all(), "pages have a frame"


def banded_pages(count, seed):
    """Three to five boxes of equal size, of different classes, each class at a height of its own."""
    rng = generator(seed)
    ranks = torch.rand(count, 5, generator=rng).argsort(dim=1).argsort(dim=1)
    classes = torch.arange(1, 6) * (ranks < torch.randint(3, 6, (count, 1), generator=rng))
    boxes = torch.tensor([[0.5, 0.1 + 0.2 * band, 0.8, 0.1] for band in range(5)])
    return boxes * (classes > 0)[..., None], classes


def test_a_short_training_tells_disturbed_pages_and_names_hidden_classes(monkeypatch, tmp_path, cpu):
    """Boxes are moved far here: small moves take thousands of steps to see."""
    monkeypatch.setattr(layout_features, "DISTURBANCE", (0.1, 0.2))
    network = features(width=32)
    untrained = tells_disturbed(network, *banded_pages(500, seed=2), generator(7))
    train(
        network,
        [list(banded_pages(1000, seed=1))],
        layout_features_loss,
        TrainingSettings(steps=350, batch_size=64, learning_rate=3e-3, ema_decay=0.95),
        seed=0,
        run=1,
        compute=cpu,
        checkpoint=tmp_path / "checkpoint.safetensors",
        identity="",
    )
    boxes, classes = banded_pages(500, seed=2)
    found = tells_disturbed(network, boxes, classes, generator(7))
    assert sum(untrained.values()) / 2 < 0.65
    assert found["real_recognised"] > 0.8
    assert found["disturbed_recognised"] > 0.8
    moved, untouched = disturb(boxes, classes, generator(8))
    realism = network.realism_of(moved, classes, batch_size=200)
    assert realism[untouched].mean() > realism[~untouched].mean() + 1
    hidden = torch.zeros_like(classes, dtype=torch.bool)
    hidden[:, 2] = classes[:, 2] > 0
    named = network.name(network(boxes, classes, hidden)[1])[hidden].argmax(dim=1) + 1
    assert (named == LIST).double().mean() > 0.8


@pytest.mark.parametrize("frozen", [False, True], ids=["training", "frozen"])
def test_features_do_not_depend_on_padding_order_or_batches(frozen):
    """Frozen, torch takes another way through a transformer."""
    network, (boxes, classes) = features().requires_grad_(not frozen), some_pages(12, most=4)
    expected = network.features_of(boxes, classes, batch_size=12)
    assert (expected.std(dim=0) > 1e-3).all(), "pages are told apart"
    wild = boxes.where((classes > 0)[..., None], 37.0)
    torch.testing.assert_close(network.features_of(wild, classes, 12), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(network.features_of(boxes[:, :4], classes[:, :4], 12), expected, rtol=0, atol=1e-5)
    order = torch.tensor([5, 3, 1, 0, 4, 2])
    torch.testing.assert_close(network.features_of(boxes[:, order], classes[:, order], 5), expected, rtol=0, atol=1e-5)
    as_stored = network.features_of(boxes.double(), classes.to(torch.uint8), 12)
    torch.testing.assert_close(as_stored, expected, rtol=0, atol=1e-5)


def test_features_depend_on_boxes_and_classes():
    network, (boxes, classes) = features(), some_pages(12)
    expected = network.features_of(boxes, classes, 12)
    moved, other = boxes.clone(), classes.clone()
    moved[:, 0, 3] += 0.1
    other[:, 0] = other[:, 0] % len(CLASSES) + 1
    for found in (network.features_of(moved, classes, 12), network.features_of(boxes, other, 12)):
        assert ((found - expected).abs().amax(dim=1) > 1e-3).all()


def test_a_hidden_class_is_hidden():
    """The network sees that something is hidden, and not what."""
    network, (boxes, classes) = features(), some_pages(12)
    hidden = torch.zeros_like(classes, dtype=torch.bool)
    hidden[:, 0] = True
    other = classes.clone()
    other[:, 0] = other[:, 0] % len(CLASSES) + 1
    shown, masked = network(boxes, classes, torch.zeros_like(hidden))[0], network(boxes, classes, hidden)[0]
    assert torch.equal(network(boxes, other, hidden)[0], masked)
    assert not torch.allclose(shown, masked, atol=1e-3)


def test_half_of_the_pages_are_disturbed_and_only_elements_are_moved():
    boxes, classes = some_pages(4000, fewest=3)
    found, untouched = disturb(boxes, classes, generator(1))
    moved = (found != boxes).any(dim=2)
    assert torch.equal(untouched, ~moved.any(dim=1))
    assert not moved[classes == 0].any()
    # Now and then chance moves no box of a page that was to be disturbed.
    expected = 0.5 + (0.5 ** (classes > 0).sum(dim=1) / 2).mean().item()
    assert untouched.double().mean().item() == pytest.approx(expected, abs=4 * 0.5 / math.sqrt(4000))
    shares = moved.sum(dim=1)[~untouched] / (classes > 0).sum(dim=1)[~untouched]
    assert shares.mean().item() == pytest.approx(0.5, abs=0.1)
    sizes = (found - boxes)[moved].std().item()
    low, high = layout_features.DISTURBANCE
    assert low < sizes < high
    again = [disturb(boxes, classes, generator(seed))[0] for seed in (1, 2)]
    assert torch.equal(again[0], found)
    assert not torch.equal(again[1], found)


def test_the_loss_of_the_features_is_finite_and_reaches_every_parameter():
    network, (boxes, classes) = features(), some_pages(32)
    loss = layout_features_loss(network, boxes, classes.to(torch.uint8), generator(1))
    loss.backward()
    # An untrained network knows nothing: about log 2 for real or not, log 5 for the classes.
    assert loss.item() == pytest.approx(math.log(2) + math.log(len(CLASSES)), abs=1)
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_pages_whose_classes_no_held_out_page_has_leave_maximum_iou_out(reference):
    """Held-out pages have five or six elements, these one. What is not a number would end the evaluation."""
    found = some_pages(12, most=1)
    assert DRAWN.metrics(found, reference).keys() == {"alignment_x100", "overlap", "fd_layout_network"}


def test_too_few_held_out_pages_and_another_networks_classes_are_one_clear_line(folder, tmp_path, cpu):
    few = prepared(tmp_path / "few", some_pages(4), some_pages(1, seed=1))
    features().save_pretrained(tmp_path / "features")
    with pytest.raises(UserError, match="two held-out pages or more"):
        DRAWN.reference(few, {"features": tmp_path / "features", "batch_size": 64}, cpu)
    LayoutFeatures(classes=3, width=8, depth=1, heads=2).save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="for 3 classes, pages have 5"):
        DRAWN.reference(folder, {"features": tmp_path / "other", "batch_size": 64}, cpu)


def test_a_batch_in_which_no_class_is_hidden_has_a_loss(monkeypatch):
    monkeypatch.setattr(layout_features, "HIDDEN", 0.0)
    assert layout_features_loss(features(), *some_pages(4), generator()).isfinite()


def test_no_page_of_a_kind_is_no_share(monkeypatch):
    monkeypatch.setattr(layout_features, "DISTURBED", 0.0)
    assert tells_disturbed(features(), *some_pages(4), generator())["disturbed_recognised"] is None

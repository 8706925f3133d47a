import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

import graft.metrics.images
from graft.errors import UserError
from graft.metrics.images import FeatureSpace, distances
from graft.networks.classifier import ImageClassifier


@pytest.fixture(autouse=True)
def small_subsets(monkeypatch):
    """KID is the mean over a hundred subsets; small ones are fast."""
    monkeypatch.setattr(graft.metrics.images, "KID_SUBSET", 100)


def normal(count, dimensions, seed):
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed))


def measure(samples, reference, neighbours_of=10_000, seed=0):
    return distances(samples, reference, seed=seed, precision_recall_samples=neighbours_of)


def frechet(samples, reference):
    """|m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)), directly."""
    samples, reference = samples.double().numpy(), reference.double().numpy()
    c, d = np.cov(samples, rowvar=False), np.cov(reference, rowvar=False)
    shift = samples.mean(axis=0) - reference.mean(axis=0)
    return shift @ shift + np.trace(c + d - 2 * sqrtm(c @ d).real)


@pytest.fixture(scope="module")
def images():
    """Random images (300, 1, 8, 8), uint8."""
    rng = torch.Generator().manual_seed(0)
    return torch.randint(256, (300, 1, 8, 8), generator=rng, dtype=torch.uint8)


@pytest.fixture(scope="module")
def classifier():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ImageClassifier(in_channels=1, classes=3, widths=(8, 16), features=12).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def space(classifier, tmp_path_factory, cpu):
    folder = tmp_path_factory.mktemp("classifier")
    classifier.save_pretrained(folder)
    return FeatureSpace("classifier", folder, cpu, batch_size=128)


def test_features_are_the_hidden_layer_of_the_saved_classifier(space, classifier, images):
    """In the images' order, also where they fill no whole batch."""
    found = space(images)
    assert found.shape == (300, 12)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, classifier.features(images), rtol=1e-4, atol=1e-6)
    assert found.std(dim=0).min() > 0, "the features tell the images apart"
    assert not found.requires_grad


def test_frechet_distance_of_features_of_images(space, images):
    samples = (images[:150] // 2).contiguous()
    found = measure(space(samples), space(images))["frechet"]
    assert found == pytest.approx(frechet(space(samples), space(images)), rel=1e-3)
    assert found > 100 * abs(measure(space(images), space(images))["frechet"])


def test_frechet_distance_against_the_direct_formula():
    samples = 1.5 * normal(500, 8, seed=0) + 0.3
    reference = normal(700, 8, seed=1) @ (torch.eye(8) + 0.2 * normal(8, 8, seed=2))
    assert measure(samples, reference)["frechet"] == pytest.approx(frechet(samples, reference), rel=1e-6)


def test_frechet_distance_of_shifted_features_is_the_square_of_the_shift():
    features = normal(500, 8, seed=0)
    shift = torch.arange(8.0) / 10
    expected = shift.square().sum().item()
    assert measure(features + shift, features)["frechet"] == pytest.approx(expected, rel=1e-4)


def test_equal_sets_are_at_no_distance():
    features = normal(400, 8, seed=0)
    found = measure(features, features.clone())
    assert abs(found["frechet"]) < 1e-6
    assert found["kid"] < 1e-2
    assert found["precision"] == 1
    assert found["recall"] == 1


def test_kernel_distance_grows_with_the_difference():
    reference = normal(300, 8, seed=0)
    near, far = (measure(normal(300, 8, seed=1) + shift, reference)["kid"] for shift in (0.0, 1.0))
    assert abs(near) < 0.02
    assert far > 0.5


def test_precision_and_recall_tell_a_narrow_set_from_a_wide_one():
    """A set within the reference is precise and does not cover it; the other way round the two change places."""
    reference = normal(400, 4, seed=0)
    narrow = 0.2 * normal(400, 4, seed=1)
    found, reverse = measure(narrow, reference), measure(reference, narrow)
    for metrics in (found, reverse):
        assert 0 <= metrics["precision"] <= 1
        assert 0 <= metrics["recall"] <= 1
    assert found["precision"] > 0.9
    assert found["recall"] < 0.3
    assert reverse["precision"] == pytest.approx(found["recall"])
    assert reverse["recall"] == pytest.approx(found["precision"])


def test_far_sets_share_nothing():
    found = measure(normal(100, 4, seed=0) + 100, normal(100, 4, seed=1))
    assert found["precision"] == found["recall"] == 0


def test_precision_and_recall_of_a_random_subset():
    """Half of either set, sorted as a folder may be: the first 200 of each would share everything, or nothing."""
    reference = normal(400, 4, seed=0)
    near, far = normal(200, 4, seed=1), normal(200, 4, seed=2) + 100
    found = measure(torch.cat([near, far]), reference, neighbours_of=200)
    assert 0.3 < found["precision"] < 0.7
    assert measure(torch.cat([far, near]), reference, neighbours_of=200)["precision"] > 0.3
    other = measure(torch.cat([near, far]), reference, neighbours_of=200, seed=1)
    assert other["precision"] != found["precision"], "another seed draws others"


def test_precision_and_recall_of_all_samples_do_not_depend_on_the_seed():
    samples, reference = normal(200, 4, seed=1), normal(100, 4, seed=0)
    first, second = (measure(samples, reference, neighbours_of=200, seed=seed) for seed in (0, 1))
    assert (first["precision"], first["recall"]) == (second["precision"], second["recall"])


def test_same_seed_gives_the_same_numbers():
    samples, reference = normal(200, 4, seed=0), normal(200, 4, seed=1)
    assert measure(samples, reference) == measure(samples, reference)
    assert measure(samples, reference)["kid"] != measure(samples, reference, seed=1)["kid"]


@pytest.mark.parametrize(("samples", "reference"), [(0, 10), (1, 10), (10, 1)])
def test_fewer_than_two_samples_are_an_error(samples, reference):
    with pytest.raises(UserError, match=f"{samples} against {reference}"):
        measure(normal(samples, 4, seed=0), normal(reference, 4, seed=1))


@pytest.mark.parametrize("count", [2, 3])
def test_samples_fewer_than_neighbours_are_refused_in_one_line(count):
    with pytest.raises(UserError, match=f"^evaluation needs more than 3 samples, got {count} against 50; raise"):
        measure(normal(count, 4, seed=0), normal(50, 4, seed=1))

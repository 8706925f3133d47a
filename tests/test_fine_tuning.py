"""Fine-tuning of a Gaussian in one dimension, whose samples' mean and variance are known in closed form."""

from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn

import graft.fine_tuning
import graft.training
from graft.errors import UserError
from graft.fine_tuning import PolicyGradient, PolicySettings, tune_on_snapshots
from graft.objectives import Anchor, FocusedTimes, denoising, stratified_times
from graft.paths import StraightPath
from graft.policy_gradient import clipped_objective
from graft.rollouts import SamplerSettings
from graft.sampling import Ddim
from graft.shards import TensorFile
from graft.training import TrainingSettings

VARIANCE = 0.25
SAMPLER = SamplerSettings(steps=6, shift=0.5, eta=1.0, batch_size=64)


class Mean(nn.Module):
    """The best denoiser of data N(mean, VARIANCE), with the mean to be learned."""

    def __init__(self, mean=0.0):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor([mean]))

    def forward(self, x, t):
        alpha, sigma = 1 - t, t
        gain = alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2)
        return self.mean + gain[:, None] * (x - alpha[:, None] * self.mean)


class Line:
    """A task whose points are numbers, each shifted by its condition."""

    path = StraightPath()
    shape = (1,)

    def project(self, x, condition):
        return x

    def denoiser(self, network, condition):
        shift = condition["shift"][:, None]
        return lambda x, t: network(x - (1 - t)[:, None] * shift, t) + shift

    def denoising_loss(self, network, x_c, cut_time, condition, generator, times=None, anchor=None):
        noise = torch.randn(x_c.shape, generator=generator)
        t = stratified_times(x_c, generator, cut_time, times)
        denoise = partial(self.denoiser, condition=condition)
        start = anchor and anchor.predicting(denoise)
        return denoising(denoise(network), lambda t: 1.0, self.path, x_c, cut_time, noise, t, start)

    def group(self, condition):
        return (condition["shift"] > 0).long()


def shifts(count):
    return {"shift": 3 * (torch.arange(count) % 2).float()}


def law_of_samples(mean):
    """Mean and variance of what the sampler draws with an unshifted `Mean`, by its affine steps."""
    update = Ddim(lambda x, t: Mean(mean)(x, t), Line.path, SAMPLER.eta)
    centre, variance = torch.zeros(1, 1), 1.0
    with torch.no_grad():
        for t, s in pairwise(SAMPLER.times):
            following, tau = update.transition(centre, t, s)
            slope = (update.transition(centre + 1, t, s)[0] - following).item()
            centre, variance = following, slope**2 * variance + tau**2
    return centre.item(), variance


SNAPSHOTS = TrainingSettings(steps=200, batch_size=128, learning_rate=0.05, ema_decay=0.9)


def tune(cpu, checkpoint, cut_time=0.0, settings=SNAPSHOTS, task=None, identity="code", times=None):
    """The mean that is learned from snapshots of N(1.5 + shift, VARIANCE) at a cut, and the loss curve."""
    network, count = Mean(), 4000
    rng, condition = torch.Generator().manual_seed(0), shifts(count)
    x_0 = 1.5 + condition["shift"][:, None] + VARIANCE**0.5 * torch.randn(count, 1, generator=rng)
    x_c = (1 - cut_time) * x_0 + cut_time * torch.randn(count, 1, generator=rng)
    log = tune_on_snapshots(
        task or Line(),
        network,
        x_c,
        cut_time,
        condition,
        settings,
        times=times,
        seed=0,
        run=1,
        compute=cpu,
        checkpoint=checkpoint,
        identity=identity,
    )
    return network.mean.detach(), log.curve


@pytest.mark.parametrize(
    ("cut_time", "times"),
    [(0.0, None), (0.25, None), (0.5, None), (0.0, FocusedTimes(0.1, 1.0, 0.1)), (0.25, FocusedTimes(0.7, 0.5, 0.3))],
)
def test_tuning_on_snapshots_learns_their_law_and_lowers_the_loss(cpu, tmp_path, cut_time, times):
    """The model that fits snapshots of N(m, v) at any cut is that of data N(m, v), whatever times it learns at.

    Conditions stay with their rows; what is left of the loss tells that the times are those of the law.
    """
    mean, curve = tune(cpu, tmp_path / "checkpoint.safetensors", cut_time, times=times)
    assert mean.item() == pytest.approx(1.5, abs=0.05)
    losses = [point["loss"] for point in curve]
    assert sum(losses[-10:]) / 10 < 0.7 * sum(losses[:3]) / 3
    assert sum(losses[-10:]) / 10 == pytest.approx(least_loss(cut_time, times), rel=0.15)


def least_loss(cut_time, times):
    """What the best model leaves: the mean over t of Var(target | x_t), with x_t and target as P-GRAFT has them."""
    c, t = cut_time, stratified_times(torch.zeros(2000), torch.Generator().manual_seed(5), cut_time, times)
    kept = (1 - t) / (1 - c)
    fresh = (t**2 - (kept * c) ** 2).sqrt()
    of_snapshot, of_noise = fresh / t / (1 - c), -(1 - t) * c**2 / ((1 - c) ** 2 * t)
    variance = (1 - c) ** 2 * VARIANCE + c**2
    covariance = kept * of_snapshot * variance + fresh * of_noise
    left = of_snapshot**2 * variance + of_noise**2 - covariance**2 / (kept**2 * variance + fresh**2)
    return left.mean().item()


@pytest.mark.parametrize("cut_time", [0.0, 0.5])
@pytest.mark.parametrize(("drift", "tilt", "expected"), [(0.8, 0.0, 0.0), (0.0, 2.0, 2.0 * VARIANCE)])
def test_anchored_tuning_learns_the_selection_alone(cpu, tmp_path, cut_time, drift, tilt, expected):
    """A model of N(0, v) with rollouts N(drift, v), accepted with odds exp(tilt x_0): N(v tilt, v), without the drift.

    Conditions and odds stay with their rows.
    """
    network, count = Mean(), 4000
    rng, condition = torch.Generator().manual_seed(0), shifts(count)
    z = VARIANCE**0.5 * torch.randn(count, 1, generator=rng)
    x_0 = drift + condition["shift"][:, None] + z
    x_c = (1 - cut_time) * x_0 + cut_time * torch.randn(count, 1, generator=rng)
    odds = torch.exp(tilt * z[:, 0])
    tune_on_snapshots(
        Line(),
        network,
        x_c,
        cut_time,
        condition,
        SNAPSHOTS,
        anchor=Anchor(Mean(), odds / odds.mean()),
        seed=0,
        run=1,
        compute=cpu,
        checkpoint=tmp_path / "checkpoint.safetensors",
        identity="",
    )
    assert network.mean.item() == pytest.approx(expected, abs=0.06 if tilt else 1e-6)


class Killed(Exception):
    """Stands for whatever ends a job."""


class Dying(Line):
    """A task that ends the job at the given call of its loss."""

    def __init__(self, last):
        self.left = last

    def denoising_loss(self, *arguments):
        self.left -= 1
        if self.left < 0:
            raise Killed
        return super().denoising_loss(*arguments)


def test_tuning_resumes_to_the_same_bytes(cpu, tmp_path, monkeypatch):
    monkeypatch.setattr(graft.training, "CHECKPOINT_MINUTES", 0)
    whole = tune(cpu, tmp_path / "whole.safetensors", 0.25)
    with pytest.raises(Killed):
        tune(cpu, tmp_path / "killed.safetensors", 0.25, task=Dying(131))
    rest = Dying(100)
    resumed = tune(cpu, tmp_path / "killed.safetensors", 0.25, task=rest)
    assert torch.equal(resumed[0], whole[0])
    assert resumed[1] == whole[1]
    assert rest.left == 100 - (SNAPSHOTS.steps - 130)


POLICY = PolicySettings(
    iterations=12, rollouts=256, gradient_steps=10, batch_size=256, clip=0.2, learning_rate=0.03, ema_decay=0.5
)
TARGET = 1.0


def near_target(x_0, condition):
    """-(x_0 - TARGET)^2, measured from the condition's shift."""
    return -(x_0[:, 0] - condition["shift"] - TARGET).square()


def improve(cpu, checkpoint, reward=near_target, settings=POLICY, identity="code", mean=0.0, seed=0, turn=1):
    """The network after DDPO, and the points of its curve."""
    network = Mean(mean)
    policy = PolicyGradient(
        Line(), network, lambda iteration: shifts(settings.rollouts), reward, settings, SAMPLER, seed, turn, cpu
    )
    return network, policy.train(checkpoint, identity)


def test_policy_gradient_finds_the_best_mean(cpu, tmp_path):
    """E r = -(E x_0 - TARGET)^2 - Var x_0, and the mean moves the first term alone: the best is -Var x_0."""
    settings = PolicySettings(**{**vars(POLICY), "iterations": 20})
    network, curve = improve(cpu, tmp_path / "checkpoint.safetensors", settings=settings)
    before, variance = law_of_samples(0.0)
    first = -((before - TARGET) ** 2) - variance
    assert first < -3 * variance, "the start is far from the best"
    assert curve[0]["reward"] == pytest.approx(first, abs=0.25)
    assert sum(point["reward"] for point in curve[-5:]) / 5 == pytest.approx(-variance, abs=0.05)
    assert law_of_samples(network.mean.item())[0] == pytest.approx(TARGET, abs=0.1)
    assert [point["reward_calls"] for point in curve] == [256 * (i + 1) for i in range(20)]


def test_policy_gradient_leaves_the_averaged_weights_frozen(cpu, tmp_path):
    checkpoint = tmp_path / "checkpoint.safetensors"
    network, _ = improve(cpu, checkpoint, settings=PolicySettings(**{**vars(POLICY), "ema_decay": 0.9}))
    kept = TensorFile(checkpoint)
    assert torch.equal(network.mean, kept.tensor("ema.0"))
    assert not torch.equal(network.mean, kept.tensor("model.0"))
    assert not network.training
    assert not network.mean.requires_grad


def test_what_a_step_did_counts_by_its_noise(cpu, tmp_path, monkeypatch):
    """Of a reward with two values, as often the one as the other, advantages are 1 and -1: what is left are weights."""
    seen = set()

    def noted(log_ratio, advantage, clip):
        seen.update(advantage.abs().tolist())
        return clipped_objective(log_ratio, advantage, clip)

    def alternating(x_0, condition):
        return torch.arange(len(x_0)) // 2 % 2  # the conditions alternate by themselves

    monkeypatch.setattr(graft.fine_tuning, "clipped_objective", noted)
    improve(cpu, tmp_path / "checkpoint.safetensors", alternating, PolicySettings(**{**vars(POLICY), "iterations": 1}))
    drawing = SAMPLER.times[:-2]  # the last step draws nothing
    variances = [Line.path.sigma(torch.tensor(t)).item() ** 2 for t in drawing]
    mean = sum(variances) / len(variances)
    assert sorted(seen) == pytest.approx(sorted(variance / mean for variance in variances), rel=1e-5)


def test_importance_ratios_are_one_until_the_policy_has_moved(cpu, tmp_path, monkeypatch):
    """They compare the policy with the one that drew, for the same rollouts under their own conditions."""
    ratios = []

    def noted(log_ratio, advantage, clip):
        ratios.append(log_ratio.detach().abs().max().item())
        return clipped_objective(log_ratio, advantage, clip)

    monkeypatch.setattr(graft.fine_tuning, "clipped_objective", noted)
    improve(cpu, tmp_path / "checkpoint.safetensors", settings=PolicySettings(**{**vars(POLICY), "iterations": 1}))
    assert len(ratios) == POLICY.gradient_steps
    assert ratios[0] < 1e-3
    assert ratios[-1] > 1e-2


def test_rollouts_are_drawn_in_the_precision_of_samples_and_likelihoods_are_float32(cpu, tmp_path, monkeypatch):
    """Both likelihoods of a ratio, so that the first are 1 to the last bit."""
    seen, ratios = [], []

    def noted(log_ratio, advantage, clip):
        ratios.append(log_ratio.detach().abs().max().item())
        return clipped_objective(log_ratio, advantage, clip)

    def forward(mean, x, t):
        seen.append((torch.is_autocast_enabled("cpu"), torch.backends.cuda.matmul.allow_tf32))
        return Mean.forward(mean, x, t)

    class Seen(Mean):
        pass

    monkeypatch.setattr(graft.fine_tuning, "clipped_objective", noted)
    monkeypatch.setattr(Seen, "forward", forward)
    once = PolicySettings(**{**vars(POLICY), "iterations": 1, "gradient_steps": 3})
    policy = PolicyGradient(
        Line(), Seen(), lambda iteration: shifts(256), near_target, once, SAMPLER, 0, 1, replace(cpu, precision="bf16")
    )
    policy.train(tmp_path / "checkpoint.safetensors", "code")
    drawn = 4 * SAMPLER.steps  # in four batches
    assert seen == [(True, False)] * drawn + [(False, True)] * 6
    assert not torch.backends.cuda.matmul.allow_tf32
    assert ratios[0] == 0
    assert ratios[-1] > 0  # the first update has the rate 0


def test_a_policy_gradient_that_does_not_fit_is_taken_in_parts(cpu, tmp_path, monkeypatch):
    """Of the same rows, so that what is learned is the same but for rounding; what did not fit leaves nothing."""
    short = PolicySettings(**{**vars(POLICY), "iterations": 2})
    whole, _ = improve(cpu, tmp_path / "whole.safetensors", settings=short)
    sizes = []

    def limited(log_ratio, advantage, clip):
        sizes.append(len(log_ratio))
        if (len(sizes) > 1 and len(log_ratio) > 200) or len(sizes) == 4:  # the third part has left its gradient
            raise torch.OutOfMemoryError("CUDA out of memory")
        return clipped_objective(log_ratio, advantage, clip)

    monkeypatch.setattr(graft.fine_tuning, "clipped_objective", limited)
    parts, _ = improve(replace(cpu, smaller_batches=True), tmp_path / "parts.safetensors", settings=short)
    assert sizes[:8] == [256, 256, 128, 128, 64, 64, 64, 64]
    assert parts.mean.item() == pytest.approx(whole.mean.item(), abs=1e-5)
    with pytest.raises(torch.OutOfMemoryError):
        improve(cpu, tmp_path / "none.safetensors", settings=short)


class Dies:
    """A reward that counts its calls and ends the job at the given one."""

    def __init__(self, last):
        self.calls, self.last = 0, last

    def __call__(self, x_0, condition):
        self.calls += 1
        if self.calls > self.last:
            raise Killed
        return near_target(x_0, condition)


@pytest.mark.parametrize("done", [1, 7])
def test_policy_gradient_resumes_to_the_same_bytes(cpu, tmp_path, done):
    """Without a reward call for the iterations that were done."""
    whole, curve = improve(cpu, tmp_path / "whole.safetensors")
    with pytest.raises(Killed):
        improve(cpu, tmp_path / "killed.safetensors", reward=Dies(done))
    rest = Dies(99)
    resumed, resumed_curve = improve(cpu, tmp_path / "killed.safetensors", reward=rest)
    assert torch.equal(resumed.mean, whole.mean)
    assert resumed_curve == curve
    assert rest.calls == POLICY.iterations - done


def test_a_checkpoint_of_other_code_seed_or_settings_is_ignored(cpu, tmp_path):
    short = PolicySettings(**{**vars(POLICY), "iterations": 2})
    improve(cpu, tmp_path / "checkpoint.safetensors", settings=short)
    others = ({"identity": "other"}, {"seed": 1}, {"settings": PolicySettings(**{**vars(short), "clip": 0.1})})
    for other in others:
        fresh = Dies(99)
        improve(cpu, tmp_path / "checkpoint.safetensors", reward=fresh, **{"settings": short, **other})
        assert fresh.calls == 2, other


def test_seed_and_turn_decide_what_is_drawn(cpu, tmp_path):
    short = PolicySettings(**{**vars(POLICY), "iterations": 1})
    curves = [
        improve(cpu, tmp_path / f"{seed}{turn}{again}.safetensors", settings=short, seed=seed, turn=turn)[1]
        for seed, turn, again in ((0, 1, 0), (0, 1, 1), (0, 2, 0), (1, 1, 0))
    ]
    assert curves[0] == curves[1]
    assert len({curve[0]["reward"] for curve in curves}) == 3


def test_rollouts_without_a_reward_teach_nothing(cpu, tmp_path):
    """All others have the same reward: nothing can be learned but from those that have none."""

    def half(x_0, condition):
        return torch.where(x_0[:, 0] > 0.5, torch.nan, 0.7)

    network, curve = improve(cpu, tmp_path / "checkpoint.safetensors", reward=half, mean=0.3)
    assert torch.equal(network.mean, torch.tensor([0.3]))
    assert all(point["reward"] == pytest.approx(0.7) for point in curve)


def test_rewards_are_compared_within_a_condition(cpu, tmp_path):
    """The condition alone decides this reward, so that no rollout is better than its like."""
    network, _ = improve(cpu, tmp_path / "checkpoint.safetensors", reward=lambda x_0, c: c["shift"], mean=0.3)
    assert torch.equal(network.mean, torch.tensor([0.3]))


def test_no_reward_at_all_ends_the_job(cpu, tmp_path):
    with pytest.raises(UserError, match="reward"):
        improve(cpu, tmp_path / "checkpoint.safetensors", reward=lambda x_0, c: x_0[:, 0] * torch.nan)
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_a_sampler_that_draws_nothing_has_no_policy(cpu, tmp_path):
    still = PolicyGradient(
        Line(), Mean(), lambda i: shifts(256), near_target, POLICY, SamplerSettings(6, 1.0, 0.0, 64), 0, 1, cpu
    )
    with pytest.raises(UserError, match="eta"):
        still.train(tmp_path / "checkpoint.safetensors", "code")

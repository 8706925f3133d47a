"""Rollouts through a tuned model and a base: which takes which step, what is kept, and what a sample depends on."""

from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch

from graft.paths import StraightPath
from graft.rollouts import SamplerSettings, chain, continue_from, in_batches, noise_at, roll_out, roll_out_batches
from graft.sampling import Ddim, Stage, sample, shifted, snapshots, uniform_times
from graft.seeding import CHUNK, ChunkedNormal, Draw, chunked_rows

STEPS, SHIFT = 8, 0.5
TIMES = [shifted(u, SHIFT) for u in uniform_times(STEPS)]
SHAPE = (3, 2)


@dataclass
class Shifted:
    """A task whose points have a mean of zero over their rows, as centred coordinates do, shifted by a condition."""

    path = StraightPath()
    shape = SHAPE

    def project(self, x, condition):
        return x - x.mean(dim=1, keepdim=True)

    def denoiser(self, network, condition):
        return lambda x, t: self.project(network(x, t) * condition["scale"][:, None, None], condition)


class Model:
    """An elementwise denoiser that notes the grid indices of the times at which it is called."""

    def __init__(self, factor):
        self.factor, self.indices = factor, []

    def __call__(self, x, t):
        self.indices.append(next(i for i in range(STEPS + 1) if abs(TIMES[STEPS - i] - t[0].item()) < 1e-6))
        return torch.tanh(self.factor * x) + t[:, None, None] * x


def settings(eta=1.0):
    return SamplerSettings(steps=STEPS, shift=SHIFT, eta=eta, batch_size=128)


def normal(start, stop, seed=0):
    return ChunkedNormal(seed, Draw.ROLLOUT, 1, start=start, stop=stop, shape=SHAPE)


def condition(start, stop):
    return {"scale": 1 + torch.arange(start, stop) / 200}


def draw(cpu, cut, stops=(), start=0, stop=128, above=None, below=None, eta=1.0):
    above, below = above or Model(2.0), below or Model(0.5)
    numbers, conditions = normal(start, stop), condition(start, stop)
    return roll_out(Shifted(), above, below, cut, settings(eta), conditions, numbers, cpu, stops)


def alone(model, eta=1.0):
    """What the sampler makes of one model all the way, from the same numbers."""
    task, conditions, numbers = Shifted(), condition(0, 128), normal(0, 128)
    update = Ddim(task.denoiser(model, conditions), task.path, eta)

    def projected():
        return task.project(numbers(), conditions)

    return sample(projected(), [Stage(update, TIMES)], projected)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_cut_0_is_the_tuned_model_alone_and_cut_1_the_base_alone_bit_for_bit(cpu, eta):
    unused = Model(1.0)
    assert torch.equal(draw(cpu, 0, below=unused, eta=eta)[0], alone(Model(2.0), eta))
    assert torch.equal(draw(cpu, STEPS, above=unused, eta=eta)[0], alone(Model(0.5), eta))
    assert unused.indices == []


@pytest.mark.parametrize("cut", range(STEPS + 1))
def test_tuned_model_takes_the_steps_down_to_the_cut_and_the_base_the_rest(cpu, cut):
    above, below = Model(2.0), Model(0.5)
    draw(cpu, cut, stops=(0, 2, 6), above=above, below=below)
    assert above.indices == list(range(STEPS, cut, -1))
    assert below.indices == list(range(cut, 0, -1))


@pytest.mark.parametrize("stops", [(), (0,), (3,), (2, 5), (0, 4), (5, 2, 2)])
@pytest.mark.parametrize("cut", [0, 3, STEPS])
def test_stages_run_from_noise_to_data_and_end_at_the_cut_and_at_every_stop(stops, cut):
    stages = chain("above", "below", cut, TIMES, stops)
    assert list(stages) == sorted({0, cut, *stops} - {STEPS}, reverse=True)
    assert all(stage.times[-1] == TIMES[STEPS - end] for end, stage in stages.items())
    assert all(stage.update == ("above" if end >= cut else "below") for end, stage in stages.items())
    joined = [time for stage in stages.values() for time in stage.times[1:]]
    assert [1.0, *joined] == TIMES
    assert all(before.times[-1] == after.times[0] for before, after in pairwise(stages.values()))


@pytest.mark.parametrize("cut", [0, 2, 5, STEPS])
def test_snapshots_are_the_states_on_the_way_and_asking_for_them_changes_nothing(cpu, cut):
    """The state at index i is what the chain down to i leaves."""
    states = draw(cpu, cut, stops=(0, 2, 5, 6))
    assert set(states) == {0, 2, 5, 6}
    assert torch.equal(states[0], draw(cpu, cut)[0])
    task, conditions = Shifted(), condition(0, 128)
    updates = [Ddim(task.denoiser(Model(factor), conditions), task.path, 1.0) for factor in (2.0, 0.5)]
    for index in (2, 5, 6):
        numbers = normal(0, 128)
        whole = [stage for end, stage in chain(*updates, cut, TIMES, (index,)).items() if end >= index]
        start = task.project(numbers(), conditions)
        reached = snapshots(start, whole, lambda numbers=numbers: task.project(numbers(), conditions))[-1]
        assert torch.equal(states[index], reached), index


@pytest.mark.parametrize("index", [1, 3, STEPS])
def test_continuing_from_a_state_is_the_rest_of_the_rollout(cpu, index):
    """With the numbers that the rollout would have drawn next; every state lies in the task's subspace."""
    states, numbers = draw(cpu, STEPS, stops=(index,)), normal(0, 128)
    for _ in range(1 + STEPS - index):
        numbers()
    found = continue_from(Shifted(), Model(0.5), states[index], index, settings(), condition(0, 128), numbers, cpu)
    assert torch.equal(found, draw(cpu, STEPS)[0])
    for state in (found, *states.values()):
        assert state.mean(dim=1).abs().max() < 1e-5


@pytest.mark.parametrize("stop", [192, 150])
def test_a_sample_does_not_depend_on_its_batch(cpu, stop):
    whole = draw(cpu, 3, stops=(3,), stop=stop)
    for starts in ([0, 64, 128], [0, 128], [0, 64]):
        parts = [draw(cpu, 3, stops=(3,), start=a, stop=b) for a, b in zip(starts, [*starts[1:], stop], strict=True)]
        for index in (0, 3):
            assert torch.equal(whole[index], torch.cat([part[index] for part in parts]))


def test_batches_of_a_condition_draw_what_the_whole_draws(cpu):
    """128 at a time, the last batch short; the numbers are those of the stream."""
    found = list(in_batches(Shifted(), condition(0, 300), 128, cpu, 0, Draw.ROLLOUT, 1))
    assert [rows for rows, *_ in found] == [slice(0, 128), slice(128, 256), slice(256, 300)]
    assert torch.equal(torch.cat([part["scale"] for _, part, _ in found]), condition(0, 300)["scale"])
    whole = normal(0, 300)
    for _ in range(2):
        assert torch.equal(torch.cat([numbers() for *_, numbers in found]), whole())


def test_noise_of_two_linear_denoisers_differs_as_they_do(cpu):
    """x_0 = a x gives eps = (1 - (1 - t) a) x / t on the straight path."""
    x, scale = draw(cpu, 0, stops=(6,))[6], {"scale": torch.ones(128)}
    found = [noise_at(Shifted(), lambda x, t, a=a: a * x, x, 0.75, scale, cpu) for a in (0.9, 0.5)]
    for a, noise in zip((0.9, 0.5), found, strict=True):
        torch.testing.assert_close(noise, (1 - 0.25 * a) * x / 0.75)
    torch.testing.assert_close(found[0] - found[1], -0.25 / 0.75 * 0.4 * x, rtol=1e-4, atol=1e-6)


def test_a_stream_of_normal_numbers_goes_on_and_depends_on_seed_draw_and_index():
    numbers = normal(64, 150)
    first, second = numbers(), numbers()
    assert first.shape == (86, *SHAPE)
    whole = normal(0, 192)
    assert torch.equal(first, whole()[64:150])
    assert torch.equal(second, whole()[64:150])
    streams = [first, second, normal(64, 150, seed=1)()]
    streams += [
        ChunkedNormal(0, draw, *index, start=64, stop=150, shape=SHAPE)()
        for draw, index in ((Draw.EVALUATION, (1,)), (Draw.ROLLOUT, (2,)), (Draw.ROLLOUT, ()))
    ]
    correlations = torch.stack([stream.flatten() for stream in streams]).corrcoef() - torch.eye(len(streams))
    assert correlations.abs().max() < 0.25
    many = ChunkedNormal(0, Draw.ROLLOUT, start=0, stop=200 * CHUNK, shape=SHAPE)()
    assert many.mean().abs() < 0.02
    assert abs(many.std() - 1) < 0.02


def test_rows_do_not_depend_on_where_the_samples_are_cut_and_are_uniform():
    whole = chunked_rows(10, 0, Draw.CONDITION, 4, start=0, stop=6400)
    parts = [chunked_rows(10, 0, Draw.CONDITION, 4, start=a, stop=b) for a, b in ((0, 64), (64, 640), (640, 6400))]
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(chunked_rows(10, 0, Draw.CONDITION, 4, start=64, stop=70), whole[64:70])
    counts = torch.bincount(whole, minlength=10)
    assert len(counts) == 10
    # Chi squared of 9 degrees of freedom: above 28 in one of a thousand seeds.
    assert ((counts - 640) ** 2 / 640).sum() < 28
    for other in ((1, Draw.CONDITION, 4), (0, Draw.POLICY, 4), (0, Draw.CONDITION, 5)):
        assert (chunked_rows(10, *other, start=0, stop=6400) == whole).double().mean() < 0.15


@pytest.mark.parametrize("start", [1, 100])
def test_samples_that_start_within_a_chunk_are_refused(start):
    with pytest.raises(ValueError, match=str(start)):
        normal(start, 200)
    with pytest.raises(ValueError, match=str(start)):
        chunked_rows(5, 0, Draw.CONDITION, start=start, stop=200)


@pytest.mark.parametrize(("cut", "index"), [(0.0, 0), (0.25, 6), (0.125, 3), (1 / 3, 8), (1.0, 24)])
def test_cuts_name_grid_indices(cut, index):
    sampler = SamplerSettings(steps=24, shift=1.0, eta=1.0, batch_size=64)
    assert sampler.index(cut) == index
    assert sampler.time(index) == pytest.approx(cut)


def test_a_shift_below_one_moves_the_times_of_the_grid_towards_the_data():
    """With shift 1/4, u / (4 - 3 u): half of the steps are below a time of 1/5."""
    sampler = SamplerSettings(steps=4, shift=0.25, eta=1.0, batch_size=64)
    assert sampler.times == pytest.approx([1, 3 / 7, 1 / 5, 1 / 13, 0])
    assert [sampler.time(index) for index in range(5)] == pytest.approx(sampler.times[::-1])
    assert SamplerSettings(steps=4, shift=1.0, eta=1.0, batch_size=64).times == uniform_times(4)


class Narrow(Model):
    """One that no more than 64 samples at a time fit in the memory of."""

    def __call__(self, x, t):
        if len(x) > 64:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().__call__(x, t)


def test_rollouts_that_do_not_fit_are_the_same_in_smaller_batches(cpu):
    chain_of = {"cut": 0, "settings": settings(), "condition": condition(0, 300), "drawn": (0, Draw.ROLLOUT, 1)}
    whole = roll_out_batches(Shifted(), Model(2.0), Model(0.5), compute=cpu, first=128, stops=[4], **chain_of)
    parts = replace(cpu, smaller_batches=True)
    found = roll_out_batches(Shifted(), Narrow(2.0), Model(0.5), compute=parts, first=128, stops=[4], **chain_of)
    assert len(found[0]) == 300
    for index in (0, 4):
        torch.testing.assert_close(found[index], whole[index], rtol=0, atol=1e-6)

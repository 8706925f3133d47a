import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import graft.training
from graft.compute import Compute
from graft.errors import UserError
from graft.objectives import flow_matching
from graft.paths import PATHS
from graft.shards import ShardedTensor, TensorFile, write_tensors
from graft.training import TrainingSettings, draw_batch, resident, train

SETTINGS = TrainingSettings(steps=250, batch_size=64, learning_rate=1e-2, ema_decay=0.9)


class Flow(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(3, 32), nn.SiLU(), nn.Linear(32, 2))

    def forward(self, x, t):
        return self.layers(torch.cat([x, t[:, None]], dim=1))


class Loss:
    """Flow matching, which counts the steps and does something else from step `wrong_from` on."""

    def __init__(self, wrong_from=math.inf, wrong=None):
        self.calls, self.wrong_from, self.wrong = 0, wrong_from, wrong

    def __call__(self, network, batch, generator):
        self.calls += 1
        value = flow_matching(network, PATHS["straight"], batch, generator)
        return self.wrong(value) if self.calls >= self.wrong_from else value


def write_data(folder):
    rows = torch.randn(300, 2, generator=torch.Generator().manual_seed(0)) * 0.1 + torch.tensor([2.0, -1.0])
    for shard, part in enumerate(rows.split(150)):
        write_tensors(folder / f"shard{shard}.safetensors", {"rows": part}, {})


def train_flow(folder, cpu, loss=None, settings=SETTINGS, checkpoint="checkpoint", identity="code", seed=0):
    """Bytes of all parameters, and the loss curve."""
    flow = Flow()
    log = run_training(flow, folder, cpu, loss, settings, checkpoint, identity, seed)
    return [parameter.detach().numpy().tobytes() for parameter in flow.parameters()], log.curve


def trained(flow, folder, cpu, settings, loss=None, checkpoint="checkpoint"):
    """The flow after its training."""
    run_training(flow, folder, cpu, loss, settings, checkpoint, "code", 0)
    return flow


def run_training(flow, folder, cpu, loss, settings, checkpoint, identity, seed):
    data = ShardedTensor([folder / f"shard{shard}.safetensors" for shard in range(2)], "rows")
    return train(
        flow,
        [[data]],
        loss or Loss(),
        settings,
        seed=seed,
        run=0,
        compute=cpu,
        checkpoint=folder / f"{checkpoint}.safetensors",
        identity=identity,
    )


@pytest.fixture
def folder(tmp_path):
    write_data(tmp_path)
    return tmp_path


@pytest.fixture
def checkpoint_at_every_point(monkeypatch):
    monkeypatch.setattr(graft.training, "CHECKPOINT_MINUTES", 0)


def test_loss_decreases(folder, cpu):
    _, curve = train_flow(folder, cpu)
    losses = [point["loss"] for point in curve]
    assert sum(losses[-10:]) / 10 < 0.5 * sum(losses[:3]) / 3
    steps = [point["step"] for point in curve]
    assert steps == sorted(set(steps))
    assert steps[-1] == SETTINGS.steps
    assert 50 <= len(steps) <= 150


def test_points_of_a_long_training_are_not_too_far_apart(folder, cpu, monkeypatch):
    """And where they are changes nothing else."""
    weights, _ = train_flow(folder, cpu)
    monkeypatch.setattr(graft.training, "LOG_STEPS", 1)
    again, curve = train_flow(folder, cpu, checkpoint="again")
    assert [point["step"] for point in curve] == list(range(1, SETTINGS.steps + 1))
    assert again == weights


def test_same_seed_gives_the_same_bytes_and_another_seed_others(folder, cpu):
    first = train_flow(folder, cpu, checkpoint="first")
    torch.manual_seed(123)
    assert train_flow(folder, cpu, checkpoint="second") == first
    assert train_flow(folder, cpu, checkpoint="third", seed=1)[0] != first[0]


def test_training_leaves_the_averaged_weights(folder, cpu):
    """With a decay of 0 the average is the last weights; with a large one it is far from them."""
    short = {"steps": 20, "batch_size": 64, "learning_rate": 1e-2}
    last, _ = train_flow(folder, cpu, settings=TrainingSettings(**short, ema_decay=0.0), checkpoint="last")
    kept = TensorFile(folder / "last.safetensors").tensors()
    assert last == [kept[f"model.{i}"].numpy().tobytes() for i in range(len(last))]
    mean, _ = train_flow(folder, cpu, settings=TrainingSettings(**short, ema_decay=0.99), checkpoint="mean")
    assert mean != last
    kept = TensorFile(folder / "mean.safetensors").tensors()
    assert mean == [kept[f"ema.{i}"].numpy().tobytes() for i in range(len(mean))]


class Memory:
    """The mean square of a network's output, for as many rows as fit; from call `shrinks_at` on half as many."""

    def __init__(self, rows, shrinks_at=math.inf):
        self.rows, self.calls, self.shrinks_at, self.sizes = rows, 0, shrinks_at, []

    def __call__(self, network, batch, generator):
        self.calls += 1
        self.sizes.append(len(batch))
        if len(batch) > (self.rows if self.calls < self.shrinks_at else self.rows // 2):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return network(batch, torch.zeros(len(batch))).square().mean()


@pytest.mark.parametrize("shrinks_at", [math.inf, 13])
def test_a_batch_that_does_not_fit_is_taken_in_parts_to_the_same_end(folder, cpu, shrinks_at):
    """13 is the second part of the sixth step, whose first part has left its gradient."""
    settings, parts = TrainingSettings(12, 64, 1e-2, 0.9), replace(cpu, smaller_batches=True)
    whole, curve = train_flow(folder, cpu, Memory(64), settings, checkpoint="whole")
    memory = Memory(32, shrinks_at)
    weights, of_parts = train_flow(folder, parts, memory, settings, checkpoint="parts")
    assert memory.sizes[:5] == [64, 32, 32, 32, 32]
    assert memory.sizes[-1] == (32 if shrinks_at == math.inf else 16)
    for mine, other in zip(weights, whole, strict=True):
        np.testing.assert_allclose(np.frombuffer(mine, "f4"), np.frombuffer(other, "f4"), rtol=0, atol=1e-5)
    assert [point["loss"] for point in of_parts] == pytest.approx([point["loss"] for point in curve], rel=1e-4)


def test_a_batch_that_does_not_fit_ends_training_where_parts_are_not_allowed(folder, cpu):
    with pytest.raises(torch.OutOfMemoryError):
        train_flow(folder, cpu, Memory(32), TrainingSettings(12, 64, 1e-2, 0.9))


def killed_run(folder):
    """What the killed process runs: SIGKILL from within step 131 of 250."""
    from graft.compute import Compute

    torch.set_num_threads(1)
    graft.training.CHECKPOINT_MINUTES = 0
    loss = Loss(wrong_from=131, wrong=lambda value: os.kill(os.getpid(), signal.SIGKILL))
    train_flow(Path(folder), Compute(torch.device("cpu"), precision="fp32", compiled=False), loss)


def test_killed_and_resumed_training_ends_with_the_same_bytes(folder, cpu):
    here = Path(__file__).resolve().parent
    killed = subprocess.run(
        [sys.executable, "-c", "import sys, test_training; test_training.killed_run(sys.argv[1])", str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(here), *sys.path])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    reached = TensorFile(folder / "checkpoint.safetensors").metadata["step"]
    assert 100 <= reached <= 130
    loss = Loss()
    weights, curve = train_flow(folder, cpu, loss)
    assert loss.calls == SETTINGS.steps - reached
    uninterrupted = train_flow(folder, cpu, checkpoint="uninterrupted")
    assert weights == uninterrupted[0]
    assert curve == uninterrupted[1]


def test_finished_training_is_not_repeated(folder, cpu):
    first, again = train_flow(folder, cpu), Loss()
    assert train_flow(folder, cpu, again) == first
    assert again.calls == 0


@pytest.mark.parametrize(
    "change",
    [
        {"identity": "other code"},
        {"seed": 1},
        {"settings": TrainingSettings(steps=250, batch_size=64, learning_rate=2e-2, ema_decay=0.9)},
    ],
    ids=["identity", "seed", "settings"],
)
def test_checkpoint_of_something_else_is_ignored(folder, cpu, change):
    train_flow(folder, cpu)
    loss = Loss()
    weights = train_flow(folder, cpu, loss, **change)
    assert loss.calls == SETTINGS.steps
    assert weights == train_flow(folder, cpu, checkpoint="fresh", **change)


def test_truncated_checkpoint_is_named(folder, cpu):
    train_flow(folder, cpu)
    checkpoint = folder / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"checkpoint\.safetensors"):
        train_flow(folder, cpu)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_loss_that_is_not_finite_names_the_step_and_leaves_no_checkpoint(folder, cpu, value):
    loss = Loss(wrong_from=33, wrong=lambda loss: loss * value)
    settings = TrainingSettings(steps=100, batch_size=64, learning_rate=1e-2, ema_decay=0.9)
    with pytest.raises(UserError, match=rf"{value} at step 33\b"):
        train_flow(folder, cpu, loss, settings)
    assert not (folder / "checkpoint.safetensors").exists()


@pytest.mark.usefixtures("checkpoint_at_every_point")
def test_checkpoint_before_a_nan_loss_is_kept_and_finite(folder, cpu):
    with pytest.raises(UserError, match="step"):
        train_flow(folder, cpu, Loss(wrong_from=100, wrong=lambda loss: loss * math.nan))
    kept = TensorFile(folder / "checkpoint.safetensors")
    assert 90 <= kept.metadata["step"] < 100
    assert all(tensor.isfinite().all() for tensor in kept.tensors().values())


def test_weights_that_are_not_finite_are_no_result(folder, cpu):
    """The last step's loss is finite and its gradient is not."""

    def bad_gradient(value):
        return value + (0 * value).sqrt()

    with pytest.raises(UserError, match="step"):
        train_flow(folder, cpu, Loss(wrong_from=SETTINGS.steps, wrong=bad_gradient))
    assert not (folder / "checkpoint.safetensors").exists()


def test_arrays_are_drawn_by_the_same_rows(cpu, tmp_path):
    rows = torch.arange(50.0)[:, None]
    write_tensors(tmp_path / "pairs.safetensors", {"x": rows, "y": -2 * rows[:, 0]}, {})
    seen = []

    def loss(network, x, y, generator):
        assert torch.equal(y, -2 * x[:, 0])
        seen.append(x[:, 0])
        return network(x).square().mean()

    settings = TrainingSettings(steps=8, batch_size=32, learning_rate=1e-3, ema_decay=0.9)
    data = [ShardedTensor([tmp_path / "pairs.safetensors"], name) for name in "xy"]
    arguments = {"seed": 0, "run": 0, "compute": cpu, "identity": ""}
    train(nn.Linear(1, 1), [data], loss, settings, **arguments, checkpoint=tmp_path / "checkpoint")
    assert [len(rows) for rows in seen] == [32] * 8
    assert len({tuple(rows.tolist()) for rows in seen}) == 8, "every step draws other rows"
    assert len(torch.cat(seen).unique()) > 45


@pytest.mark.parametrize(("sizes", "counts"), [((30, 10), [6, 2]), ((99, 1), [8, 1])], ids=["shares", "a_small_one"])
def test_strata_count_by_their_sizes(cpu, tmp_path, sizes, counts):
    """A batch has rows of each, and the loss of each weighs as much as its share of the data has."""
    strata = [[torch.full((size, width), float(width))] for size, width in zip(sizes, (1, 5), strict=True)]
    model, seen = nn.Linear(1, 1, bias=False), []

    def loss(network, x, generator):
        seen.append(tuple(x.shape))
        return x.mean() + 0 * model.weight.sum()

    settings = TrainingSettings(steps=3, batch_size=8, learning_rate=1e-3, ema_decay=0.9)
    arguments = {"seed": 0, "run": 0, "compute": cpu, "identity": ""}
    log = train(model, strata, loss, settings, **arguments, checkpoint=tmp_path / "checkpoint")
    assert seen == [(counts[0], 1), (counts[1], 5)] * 3
    expected = (sizes[0] * 1 + sizes[1] * 5) / sum(sizes)
    assert [point["loss"] for point in log.curve] == pytest.approx([expected] * 3, rel=1e-6)


class HiddenLayer(Flow):
    """A flow with a square matrix between its layers."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.layers.insert(2, nn.Linear(32, 32))

    def hidden_matrices(self):
        return [self.layers[2].weight]


def test_muon_takes_orthogonal_steps_with_the_hidden_matrices_and_adamw_the_others(folder, cpu):
    """Both singular values of the matrix's gradient, which is of rank two, become about 0.2 sqrt(32) times the rate.

    In the first step of two the rate is zero, in the second it is whole.
    """
    before = dict(HiddenLayer().named_parameters())
    settings = TrainingSettings(steps=2, batch_size=64, learning_rate=1e-2, ema_decay=0.0, optimizer="muon")
    after = dict(trained(HiddenLayer(), folder, cpu, settings).named_parameters())
    steps = {name: (after[name] - value).detach() for name, value in before.items()}
    values = torch.linalg.svdvals(steps.pop("layers.2.weight")) / (0.2 * 32**0.5 * 1e-2)
    assert all(0.65 < value < 1.25 for value in values[:2].tolist())
    for step in steps.values():
        assert step.abs().median().item() == pytest.approx(1e-2, rel=0.1), "AdamW's early steps are the rate"


@pytest.mark.usefixtures("checkpoint_at_every_point")
def test_muon_goes_on_from_a_checkpoint_to_the_same_bytes(folder, cpu):
    settings = TrainingSettings(steps=40, batch_size=64, learning_rate=1e-2, ema_decay=0.9, optimizer="muon")
    whole = trained(HiddenLayer(), folder, cpu, settings, checkpoint="whole")
    with pytest.raises(UserError):
        trained(HiddenLayer(), folder, cpu, settings, Loss(wrong_from=20, wrong=lambda loss: loss * math.nan))
    rest = Loss()
    resumed = trained(HiddenLayer(), folder, cpu, settings, rest)
    assert rest.calls == 40 - 19
    for found, expected in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(found, expected)


def test_muon_asks_the_network_for_its_hidden_matrices(folder, cpu):
    settings = replace(SETTINGS, optimizer="muon")
    with pytest.raises(UserError, match="muon is for networks with hidden matrices, and a Flow has none"):
        train_flow(folder, cpu, settings=settings)


def test_arrays_that_fit_are_drawn_from_where_they_are_used(monkeypatch):
    """On the meta device, which like a GPU holds its tensors apart from those of the CPU."""
    small, large = torch.arange(12.0).reshape(6, 2), torch.zeros(6, 100)
    monkeypatch.setattr(graft.training, "RESIDENT_BYTES", small.nbytes)
    elsewhere = Compute(torch.device("meta"), "fp32", compiled=False)
    monkeypatch.setattr(Compute, "to_device", lambda self, tensor: tensor.to(self.device))
    kept = [resident(array, elsewhere) for array in (small, large)]
    assert [array.device.type for array in kept] == ["meta", "cpu"]
    assert resident(small, Compute(torch.device("cpu"), "fp32", compiled=False)) is small
    drawn = draw_batch(kept, 4, torch.Generator().manual_seed(0), elsewhere)
    assert [(part.device.type, tuple(part.shape)) for part in drawn] == [("meta", (4, 2)), ("meta", (4, 100))]


def test_a_resident_array_gives_the_rows_that_one_on_disk_gives(tmp_path):
    values, cpu = torch.arange(40.0).reshape(20, 2), Compute(torch.device("cpu"), "fp32", compiled=False)
    write_tensors(tmp_path / "shard.safetensors", {"x": values}, {})
    arrays = [values, ShardedTensor([tmp_path / "shard.safetensors"], "x")]  # a tensor is taken for resident
    first, second = draw_batch(arrays, 8, torch.Generator().manual_seed(1), cpu)
    assert torch.equal(first, second)
    assert len(first.unique()) > 2

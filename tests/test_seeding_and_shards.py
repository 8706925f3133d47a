import tracemalloc

import numpy as np
import pytest
import torch
from replicas import write_tar

import graft.shards
from graft.errors import UserError
from graft.files import atomic, read_json, tar_members, write_json
from graft.seeding import CHUNK, Draw, chunked_normal, drawn_weights, generator, random_rows
from graft.shards import ShardedTensor, TensorFile, shard_batches, write_tensors

SHAPE = (3, 2)


def noise(start, stop, seed=0, draw=Draw.NOISE):
    return chunked_normal(seed, draw, start, stop, SHAPE)


def test_numbers_do_not_depend_on_where_the_samples_are_cut():
    whole = noise(0, 300)
    assert whole.shape == (300, *SHAPE)
    assert torch.equal(whole, torch.cat([noise(0, 128), noise(128, 300)]))
    for batch_size in (64, 128, 192):
        starts = range(0, 300, batch_size)
        batches = [noise(start, min(start + batch_size, 300)) for start in starts]
        assert torch.equal(whole, torch.cat(batches))


def test_incomplete_chunk_starts_as_the_whole_one():
    assert torch.equal(noise(64, 70), noise(64, 128)[:6])


def test_no_samples_are_an_empty_array():
    assert noise(64, 64).shape == (0, *SHAPE)


@pytest.mark.parametrize("start", [1, 63, 100])
def test_start_within_a_chunk_is_refused(start):
    with pytest.raises(ValueError, match=str(start)):
        noise(start, 300)


def test_chunks_seeds_and_draws_differ_and_are_standard_normal():
    streams = [noise(0, CHUNK), noise(CHUNK, 2 * CHUNK), noise(0, CHUNK, seed=1)]
    streams += [noise(0, CHUNK, draw=draw) for draw in Draw if draw != Draw.NOISE]
    columns = torch.stack([stream.flatten() for stream in streams])
    correlations = columns.corrcoef() - torch.eye(len(columns))
    assert correlations.abs().max() < 0.25, "more than five standard errors of independent numbers"
    assert noise(0, 64 * CHUNK).mean().abs() < 0.03
    assert abs(noise(0, 64 * CHUNK).std() - 1) < 0.03


def test_random_rows_are_different_ones_in_order_and_all_where_there_are_no_more():
    rows = random_rows(100, 30, 0, Draw.SUBSET)
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert len(rows) == 30
    assert rows.max() >= 50, "not only the first"
    assert torch.equal(rows, random_rows(100, 30, 0, Draw.SUBSET))
    assert not torch.equal(rows, random_rows(100, 30, 1, Draw.SUBSET))
    for count in (100, 101):
        assert torch.equal(random_rows(100, count, 0, Draw.SUBSET), torch.arange(100))


def test_values_of_draws_are_part_of_the_results():
    """Streams are numbered; renumbering them would change every result."""
    names = ["INITIALISATION", "BATCH", "TRAINING", "DEQUANTISATION", "REFERENCE", "NOISE", "KNOWN_NOISE"]
    assert [Draw[name].value for name in names] == list(range(7))


def test_generators_are_functions_of_seed_draw_and_index():
    def number(*arguments):
        return torch.rand(1, generator=generator(*arguments), dtype=torch.float64).item()

    keys = [(0, Draw.BATCH), (1, Draw.BATCH), (0, Draw.TRAINING), (0, Draw.BATCH, 0), (0, Draw.BATCH, 0, 1)]
    keys += [(0, Draw.BATCH, 1), (0, Draw.BATCH, 1, 0)]
    assert len({number(*key) for key in keys}) == len(keys)
    assert [number(*key) for key in keys] == [number(*key) for key in keys]


def test_global_random_states_are_neither_used_nor_touched():
    def draws():
        with drawn_weights(0, run=1):
            layer = torch.nn.Linear(3, 3)
        return [noise(0, 100), torch.rand(2, generator=generator(0, Draw.BATCH, 1)), layer.weight.detach()]

    torch.manual_seed(1)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()
    first = draws()
    assert torch.equal(torch.get_rng_state(), before)
    numpy_after = np.random.get_state()
    assert np.array_equal(numpy_after[1], numpy_before[1])
    assert numpy_after[2:] == numpy_before[2:]
    torch.manual_seed(2)
    assert all(torch.equal(a, b) for a, b in zip(first, draws(), strict=True))


def test_weights_differ_between_seeds_and_runs():
    def weight(seed, run):
        with drawn_weights(seed, run):
            return torch.nn.Linear(2, 2).weight.detach()

    assert torch.equal(weight(0, 0), weight(0, 0))
    assert not torch.equal(weight(0, 0), weight(0, 1))
    assert not torch.equal(weight(0, 0), weight(1, 0))


def test_global_state_is_restored_after_an_error_too():
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match=r"[Nn]egative"), drawn_weights(0, 0):
        torch.rand(torch.randint(1, (1,)).item() - 1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("total", "batch_size"), [(1000, 128), (1024, 256), (65, 64), (1, 64), (500, 512)])
def test_shards_share_out_the_same_batches(total, batch_size):
    whole = shard_batches(total, batch_size, 0, 1)
    assert [start for start, _ in whole] == list(range(0, total, batch_size))
    assert [stop for _, stop in whole] == [*range(batch_size, total, batch_size), total]
    for shards in (2, 3, 7, 20):
        parts = [shard_batches(total, batch_size, shard, shards) for shard in range(shards)]
        assert [batch for part in parts for batch in part] == whole
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("batch_size", [1, 63, 100])
def test_batches_hold_whole_chunks(batch_size):
    with pytest.raises(ValueError, match=str(batch_size)):
        shard_batches(1000, batch_size, 0, 1)


@pytest.fixture
def sharded(tmp_path):
    """One array of 17 rows, and the same over files of 5, 0, 8 and 4 rows."""
    array = torch.arange(17 * 6).reshape(17, 3, 2).to(torch.uint8)
    paths = [tmp_path / f"shard{i}.safetensors" for i in range(4)]
    for path, rows in zip(paths, array.split([5, 0, 8, 4]), strict=True):
        write_tensors(path, {"rows": rows, "other": torch.zeros(3)}, {})
    return array, ShardedTensor(paths, "rows")


def test_sharded_tensor_is_indexed_as_one_array(sharded):
    array, shards = sharded
    assert len(shards) == 17
    assert tuple(shards.shape) == (3, 2)
    assert torch.equal(shards[:], array)
    assert shards[:].dtype == torch.uint8
    rng = torch.Generator().manual_seed(0)
    for _ in range(10):
        indices = torch.randint(17, (12,), generator=rng)
        assert torch.equal(shards[indices], array[indices])
    for part in (slice(3, 9), slice(4, 5), slice(5, 13), slice(10, 100), slice(0, 17, 3), slice(3, 3), slice(-2, None)):
        assert torch.equal(shards[part], array[part])
    assert shards[torch.empty(0, dtype=torch.long)].shape == (0, 3, 2)


def test_index_out_of_range_is_refused(sharded):
    with pytest.raises(IndexError):
        sharded[1][torch.tensor([0, 17])]


def test_shards_without_rows_are_named(tmp_path):
    write_tensors(tmp_path / "empty.safetensors", {"rows": torch.empty(0, 3)}, {})
    with pytest.raises(UserError, match=r"rows.*empty\.safetensors"):
        ShardedTensor([tmp_path / "empty.safetensors"], "rows")


def test_shards_of_different_shapes_are_refused(tmp_path):
    write_tensors(tmp_path / "a.safetensors", {"rows": torch.zeros(2, 3)}, {})
    write_tensors(tmp_path / "b.safetensors", {"rows": torch.zeros(2, 4)}, {})
    with pytest.raises(UserError, match="shapes"):
        ShardedTensor([tmp_path / "a.safetensors", tmp_path / "b.safetensors"], "rows")


@pytest.mark.parametrize("kept", [0, 5, 60, -1])
def test_truncated_file_is_named(tmp_path, kept):
    path = tmp_path / "shard0.safetensors"
    write_tensors(path, {"rows": torch.zeros(10, 3)}, {})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"shard0\.safetensors"):
        TensorFile(path)
    with pytest.raises(UserError, match=r"shard0\.safetensors"):
        ShardedTensor([path], "rows")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"absent\.safetensors"):
        TensorFile(tmp_path / "absent.safetensors")


def test_tensors_and_metadata_come_back(tmp_path):
    tensors = {"b": torch.arange(6).reshape(2, 3), "a": torch.randn(3, 2).T, "half": torch.zeros(2).bfloat16()}
    write_tensors(tmp_path / "file.safetensors", tensors, {"shard": 3, "costs": {"base": 1.5}})
    file = TensorFile(tmp_path / "file.safetensors")
    assert file.names == ["a", "b", "half"]
    assert file.metadata == {"shard": 3, "costs": {"base": 1.5}}
    for name, tensor in file.tensors().items():
        assert tensor.dtype == tensors[name].dtype
        assert torch.equal(tensor, tensors[name])


def test_same_content_gives_the_same_bytes(tmp_path):
    """Whatever the order in which tensors and metadata are named."""
    tensors = {name: torch.full((2,), float(ord(name))) for name in "abcdef"}
    metadata = {name: ord(name) for name in "ghijkl"}
    contents = set()
    for number in range(6):
        path = tmp_path / f"{number}.safetensors"
        order = -1 if number % 2 else 1
        write_tensors(path, dict(list(tensors.items())[::order]), dict(list(metadata.items())[::order]))
        contents.add(path.read_bytes())
    assert len(contents) == 1


@pytest.mark.parametrize("existing", [False, True])
def test_failure_while_writing_leaves_what_was_there(tmp_path, monkeypatch, existing):
    path = tmp_path / "file.safetensors"
    if existing:
        write_tensors(path, {"rows": torch.zeros(3)}, {})
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def disk_full(tensors, scratch, metadata):
        with open(scratch, "wb") as file:
            file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(graft.shards, "save_file", disk_full)
    with pytest.raises(OSError, match="no space left"):
        write_tensors(path, {"rows": torch.ones(3)}, {})
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_unfinished_file_does_not_bear_its_name(tmp_path):
    with atomic(tmp_path / "new" / "file.txt") as scratch:
        scratch.write_text("half")
        assert not (tmp_path / "new" / "file.txt").exists()
    assert (tmp_path / "new" / "file.txt").read_text() == "half"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file.txt"]


def test_json_refuses_nan_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"JSON|nan"):
        write_json(tmp_path / "metrics.json", {"frechet": float("nan")})
    assert not list(tmp_path.iterdir())
    write_json(tmp_path / "metrics.json", {"b": 1, "a": [2.5]})
    assert read_json(tmp_path / "metrics.json") == {"a": [2.5], "b": 1}


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.bz2"])
def test_files_of_a_tar_archive_are_read_one_at_a_time(tmp_path, suffix):
    files = {f"folder/{number}.bin": bytes([number]) * 1_000_000 for number in range(20)}
    write_tar(tmp_path / f"archive.{suffix}", files)
    tracemalloc.start()
    for expected, found in zip(files.items(), tar_members(tmp_path / f"archive.{suffix}"), strict=True):
        assert found == expected
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000

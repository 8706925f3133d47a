"""How a job ends: whole, with one line that the user can mend, or with a traceback."""

from types import SimpleNamespace

import pytest
import torch
import yaml
from test_workflow import REPOSITORY

from graft.errors import UserError
from graft.jobs import BATCH_SIZES, run


@pytest.fixture
def job(tmp_path):
    return SimpleNamespace(log=[tmp_path / "job.log"], rule="draw_rollouts")


def failing(error):
    def main(job):
        raise error

    return main


def test_what_the_user_can_mend_is_one_line(job, capsys):
    with pytest.raises(SystemExit) as ended:
        run(failing(UserError("data: no images; add some")), job)
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: data: no images; add some\n"


def test_the_line_is_one_write_as_jobs_that_end_together_would_mix_their_parts(job, monkeypatch):
    writes = []
    monkeypatch.setattr("sys.stderr", SimpleNamespace(write=writes.append))
    with pytest.raises(SystemExit):
        run(failing(UserError("no images")), job)
    assert writes == ["error: no images\n"]


def test_a_full_gpu_names_the_batch_size_to_lower(job, capsys):
    with pytest.raises(SystemExit):
        run(failing(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")), job)
    assert capsys.readouterr().err == "error: draw_rollouts: the GPU's memory is full; lower sampler.batch_size\n"


def test_a_defect_keeps_its_traceback(job, capsys):
    with pytest.raises(ZeroDivisionError):
        run(lambda job: 1 / 0, job)
    assert "error:" not in capsys.readouterr().err


def test_the_batch_sizes_are_those_of_the_configuration():
    scales = [yaml.safe_load((REPOSITORY / f"config/{scale}.yaml").read_text()) for scale in ("config", "paper")]
    tasks = ("images", "text_to_image", "layouts")
    settings = [next(iter(config[task]["settings"].values())) for config in scales for task in tasks]

    def known(key, block):
        for part in key.split("."):
            block = next(iter(block.values()), {}) if part == "*" else block.get(part, {})
        return block

    for advice in BATCH_SIZES.values():
        key = advice.split(",")[0].split(" or ")[0]
        assert any(isinstance(known(key, block), int) for block in settings), key

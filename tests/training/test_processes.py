"""Two processes, whichever way they share the model, train what one process trains, to rounding."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from compared import close

import lilliput as lp
from lilliput.training.lessons import LAST_GOOD

sys.path.insert(0, str(Path(__file__).parent))
import processes


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have trained every kind of task in both ways."""
    place = tmp_path_factory.mktemp("processes")
    paths = os.pathsep.join(filter(None, sys.path))
    env = {**os.environ, "PYTHONPATH": paths, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = subprocess.run(
        [*command, processes.__file__, str(place)], env=env, capture_output=True, text=True, timeout=3600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return place


@pytest.mark.parametrize("compressed", ["plain", "compressed"])
@pytest.mark.parametrize("sharing", ["copies", "shards"])
def test_two_processes_train_what_one_does(sharing: str, compressed: str, out: Path) -> None:
    one = lp.train(processes.task(compressed), processes.step()).model
    out = out / f"{sharing}-{compressed}"
    for rank in ("0", "1"):
        two = lp.load(out / f"{rank}.lil", into=processes.Net())
        for (name, x), (_, y) in zip(one.state_dict().items(), two.state_dict().items(), strict=True):
            if x.dtype.is_floating_point:
                close(x, y, rtol=4e-5, atol=4e-6, msg=name)
            else:
                assert float((x != y).float().mean()) < 0.01, name  # a weight between two codes may fall either way


def test_two_processes_go_on_in_one_folder(out: Path) -> None:
    """Both write the answer there, and both find it."""
    out = out / "copies-kept"
    assert [path.suffix for path in (out / "kept").iterdir()] == [".answer"]
    one = lp.train(processes.task("plain"), processes.step()).model.state_dict()
    first, second = (lp.load(out / f"{rank}.lil", into=processes.Net()).state_dict() for rank in (0, 1))
    for name, x in one.items():
        assert torch.equal(first[name], second[name]), name
        close(first[name], x, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("sharing", ["copies", "shards"])
def test_processes_agree_on_the_statistics_of_their_shares(sharing: str, out: Path) -> None:
    """Each normalises its own half of a batch, as torch does it; what comes out is one model all the same."""
    one = lp.train(processes.task("norms"), processes.step()).model
    out = out / f"{sharing}-norms"
    first, second = (
        lp.load(out / f"{rank}.lil", into=processes.Net(torch.nn.BatchNorm1d)).state_dict() for rank in (0, 1)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    mean = "layers.2.running_mean"
    assert not torch.equal(first[mean], torch.zeros(32))
    close(first[mean], one.state_dict()[mean], share=0.05)


@pytest.mark.parametrize("kind", ["spoilt", "failing"])
@pytest.mark.parametrize("sharing", ["copies", "shards"])
def test_trouble_in_one_process_stops_both(sharing: str, kind: str, out: Path) -> None:
    out = out / f"{sharing}-{kind}"
    first, second = ((out / f"{rank}.txt").read_text().replace(f"kept{rank}", "") for rank in (0, 1))
    told = "the loss is nan" if kind == "spoilt" else "the loss failed (ValueError: no such label)"
    assert first == second and f"train, epoch 2, batch 2: {told}" in first
    if kind == "spoilt":
        good = [lp.load(out / f"kept{rank}" / LAST_GOOD, into=processes.Net()).state_dict() for rank in (0, 1)]
        begun = processes.task("plain").model.state_dict()
        assert all(torch.equal(x, good[1][name]) for name, x in good[0].items())
        assert not torch.equal(good[0]["layers.0.weight"], begun["layers.0.weight"])

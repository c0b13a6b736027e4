"""Checkpoints are read on any device, and only what is damaged counts as damaged."""

from pathlib import Path

import pytest
import torch

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.training.checkpointing import CheckpointManager


@pytest.fixture
def checkpoints(tmp_path: Path) -> CheckpointManager:
    manager = CheckpointManager(str(tmp_path), keep=2)
    for step in (4, 8):
        manager.save(step, {"weights": torch.full((3,), float(step))})
    return manager


def test_a_checkpoint_of_a_gpu_is_read_on_a_machine_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = CheckpointManager(str(tmp_path), keep=1)
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        manager.save(3, {"weights": torch.ones(2)})
    step, state = manager.load_last() or pytest.fail("the checkpoint counts as damaged")
    assert step == 3 and state["weights"].device.type == "cpu" and state["weights"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("error", [OSError("the network is down"), UserError("no credentials for s3://bucket")])
def test_a_storage_that_cannot_be_read_is_not_damage(
    checkpoints: CheckpointManager, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise an outage starts the training again at step 1."""

    def fail(url: str) -> bytes:
        raise error

    monkeypatch.setattr(storage, "read_bytes", fail)
    with pytest.raises(type(error), match=str(error)):
        checkpoints.load_last()


@pytest.mark.parametrize("content", [b"", b"short", b"0" * 64 + b"other content"])
def test_a_checkpoint_with_other_content_is_skipped_for_the_one_before(
    checkpoints: CheckpointManager, content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "checkpoints" / "step-00000008.ckpt").write_bytes(content)
    step, state = checkpoints.load_last() or pytest.fail("no checkpoint")
    assert step == 4 and state["weights"].tolist() == [4.0] * 3
    assert any("step-00000008.ckpt" in line and "damaged" in line for line in caplog.messages)

"""Which device a rank computes on. Where GPUs are to be had is told apart by what torch says of itself."""

from __future__ import annotations

import pytest
import torch

from trainer.config import Device
from trainer.distributed import NoGPU, device_of

CPU = torch.device("cpu")


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A torch with CUDA on a node of four GPUs."""
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    return monkeypatch


def test_a_rank_takes_its_own_gpu_whether_it_sees_all_or_one(gpus: pytest.MonkeyPatch) -> None:
    assert [device_of(Device.auto, rank) for rank in range(4)] == [torch.device("cuda", n) for n in range(4)]
    assert device_of(Device.cpu, 1, granted=True) == CPU
    gpus.setattr(torch.cuda, "device_count", lambda: 1)
    assert device_of(Device.cuda, 3) == torch.device("cuda", 0)


def test_without_a_gpu_auto_is_the_cpu_unless_gpus_were_granted(gpus: pytest.MonkeyPatch) -> None:
    gpus.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of(Device.auto, 0) == CPU
    for choice, granted in ((Device.auto, True), (Device.cuda, False)):
        with pytest.raises(NoGPU, match=f"train.device={choice.value}: this process sees no GPU.*job.exclude"):
            device_of(choice, 0, granted=granted)
    gpus.setattr(torch.backends.cuda, "is_built", lambda: False)
    with pytest.raises(ValueError, match=r"was built without CUDA. Try: train\.device=cpu"):
        device_of(Device.auto, 0, granted=True)

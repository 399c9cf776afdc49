"""Programs as groups write them, that know nothing of hpc but its environment. Not tests."""

from __future__ import annotations

# Saves when asked to by SIGUSR2, and goes on from there: words are the steps to do, and the seconds of one.
TRAINING = """
import os, signal, sys, time
from pathlib import Path
stop = []
signal.signal(signal.SIGUSR2, lambda *_: stop.append(1))
saved = Path(os.environ["HPC_CHECKPOINTS"]) / "step"
step, steps = int(saved.read_text()) if saved.exists() else 0, int(sys.argv[1])
print(f"begin at {step}, resume {os.environ['HPC_RESUME']}")
while step < steps and not stop:
    step += 1
    time.sleep(float(sys.argv[2]))
    print(f" iteration {step}/{steps} | consumed tokens: {step * 100} | lm loss: {10 / step:.6E} |")
saved.write_text(str(step))
"""

# The same by torch.distributed over gloo, one process each started by torchrun.
DISTRIBUTED = """
import os, signal, sys, time
from pathlib import Path
stop = []
signal.signal(signal.SIGUSR2, lambda *_: stop.append(1))
import torch, torch.distributed as dist
dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), 0.01)
saved = Path(os.environ["HPC_CHECKPOINTS"]) / "state.pt"
step, steps = 0, int(sys.argv[1])
if saved.exists():
    state = torch.load(saved)
    step = state["step"]
    model.load_state_dict(state["model"])
if rank == 0:
    print(f"begin at {step} of {size} processes")
while step < steps:
    step += 1
    loss = model(torch.ones(2, 4)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    time.sleep(float(sys.argv[2]))
    if rank == 0:
        print(f" iteration {step}/{steps} | lm loss: {loss.item():.6E} |")
    asked = torch.tensor([len(stop)])
    dist.all_reduce(asked)
    if asked.item() or step % 5 == 0:
        if rank == 0:
            torch.save({"step": step, "model": model.state_dict()}, f"{saved}.tmp")
            os.replace(f"{saved}.tmp", saved)
        dist.barrier()
    if asked.item():
        break
dist.destroy_process_group()
"""

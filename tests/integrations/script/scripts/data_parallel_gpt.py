"""A GPT under DistributedDataParallel that saves and loads its checkpoint: FOLDER EPOCHS [rank:epoch:step that dies].

A step takes the same eight samples on any number of processes, and its loss is their sum over a constant.
"""

import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

sys.path.insert(0, str(Path(__file__).parents[3] / "problem"))
from shared_recipes import Gpt  # noqa: E402

folder, epochs, dies = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else ""
distributed.init_process_group("gloo")
rank, count = distributed.get_rank(), distributed.get_world_size()
torch.manual_seed(0)
ids = torch.randint(17, (24, 7))
targets = ids.roll(-1, 1).masked_fill(torch.rand(24, 7) < 0.3, -100)
model = Gpt().double()
wrapped = DistributedDataParallel(model)
optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1, momentum=0.9)
loss_of = nn.CrossEntropyLoss(ignore_index=-100, reduction="sum")
sampler = DistributedSampler(ids, seed=3)
saved, begun = folder / "last.pt", 0
if saved.exists():
    kept = torch.load(saved, weights_only=True)
    model.load_state_dict(kept["model"])
    optimizer.load_state_dict(kept["optimizer"])
    begun = kept["epoch"]
for epoch in range(begun, epochs):
    sampler.set_epoch(epoch)
    for step, (a, b) in enumerate(DataLoader(TensorDataset(ids, targets), batch_size=8 // count, sampler=sampler)):
        if dies == f"{rank}:{epoch}:{step}":
            time.sleep(1)  # what the epoch before has recorded is on the disk
            os.kill(os.getpid(), signal.SIGKILL)
        optimizer.zero_grad()
        (loss_of(wrapped(a), b) * count / 40).backward()
        optimizer.step()
    if rank == 0:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1}, saved)
    distributed.barrier()
sys.stdout.flush()
os._exit(0)  # gloo sometimes aborts a process that takes its leave the usual way after its peers

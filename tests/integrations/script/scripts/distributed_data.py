"""Two processes with DistributedDataParallel: each has half of the samples, and gradients are averaged."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

folder = Path(sys.argv[1])
dist.init_process_group("gloo")
torch.manual_seed(0)
inputs = torch.randn(96, 8, dtype=torch.float64)
data = TensorDataset(inputs, inputs.sum(1).gt(0).long())
sampler = DistributedSampler(data, seed=3)
loader = DataLoader(data, batch_size=8, sampler=sampler)
net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2)).double()
model = DistributedDataParallel(net)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
for epoch in range(3):
    if dist.get_rank() == 0:
        torch.save(net.state_dict(), folder / f"epoch{epoch}.pt")
    sampler.set_epoch(epoch)
    for batch, labels in loader:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(batch), labels)
        loss.backward()
        optimizer.step()
    if dist.get_rank() == 0:
        print(f"epoch {epoch}: {loss.item():.17g}", flush=True)
if dist.get_rank() == 0:
    torch.save(net.state_dict(), folder / "epoch3.pt")
dist.barrier()
if dist.get_rank():
    os._exit(0)  # gloo sometimes aborts a process that takes its leave the usual way after its peer has gone
dist.destroy_process_group()

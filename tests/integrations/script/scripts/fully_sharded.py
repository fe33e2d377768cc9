"""Several processes that hold parts of the parameters (FSDP2): AdamW, clipping, a share of eight samples each."""

import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

folder, epochs = Path(sys.argv[1]), int(sys.argv[2])
dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
inputs = torch.randn(48, 9, dtype=torch.float64)
data = TensorDataset(inputs, inputs.sum(1).gt(0).long())
# Three rows on two processes, and on four: one holds less than the others, or nothing.
model = nn.Sequential(nn.Linear(9, 17), nn.LayerNorm(17), nn.Linear(17, 17), nn.Tanh(), nn.Linear(17, 3)).double()
model[2].weight.requires_grad_(False)
for layer in model:
    if isinstance(layer, nn.Linear):
        fully_shard(layer)
fully_shard(model)
optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=0.01)
sampler = DistributedSampler(data, seed=1)
loader = DataLoader(data, batch_size=8 // dist.get_world_size(), sampler=sampler)
checkpoint, begun = folder / "checkpoint", 0


def save(epoch: int) -> None:
    whole = {name: parameter.full_tensor() for name, parameter in model.named_parameters()}
    if rank == 0:
        torch.save(whole, folder / f"epoch{epoch}.pt")


if len(sys.argv) > 3:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    if checkpoint.exists():
        weights, moments = get_state_dict(model, optimizer)
        state = {"weights": weights, "moments": moments, "epoch": 0}
        dcp.load(state, checkpoint_id=checkpoint)
        set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments)
        begun = state["epoch"]

for epoch in range(begun, epochs):
    save(epoch)
    sampler.set_epoch(epoch)
    if (folder / "slow").exists():
        (folder / f"pid{rank}").write_text(str(os.getpid()))
        time.sleep(1)
    for batch, labels in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch), labels).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.2)
        optimizer.step()
    if len(sys.argv) > 3:
        weights, moments = get_state_dict(model, optimizer)
        dcp.save({"weights": weights, "moments": moments, "epoch": epoch + 1}, checkpoint_id=checkpoint)
save(epochs)
if rank == 0:
    print("trained", flush=True)
dist.barrier()
if rank:
    os._exit(0)  # gloo sometimes aborts a process that takes its leave the usual way after its peer has gone
dist.destroy_process_group()

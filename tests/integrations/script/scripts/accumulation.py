"""Plain SGD with gradients accumulated over three batches; the short last group is flushed after the loop."""

import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

out = Path(sys.argv[1])
torch.manual_seed(2)
inputs = torch.randn(44, 5)
loader = DataLoader(TensorDataset(inputs, inputs @ torch.randn(5, 1)), batch_size=6)
model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
group = 3

torch.save(model.state_dict(), out / "epoch0.pt")
for epoch in range(1, 3):
    optimizer.zero_grad()
    for index, (x, y) in enumerate(loader, start=1):
        loss = nn.functional.mse_loss(model(x), y) / group
        loss.backward()
        if index % group == 0:
            optimizer.step()
            optimizer.zero_grad()
    if index % group:
        optimizer.step()
    print(epoch, repr(loss.item()))
    torch.save(model.state_dict(), out / f"epoch{epoch}.pt")

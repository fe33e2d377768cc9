"""A loop over a number of steps: each pass over the data is cut short by `break`, and so is the last."""

import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

out = Path(sys.argv[1])
torch.manual_seed(5)
x = torch.randn(60, 4)
loader = DataLoader(TensorDataset(x, x.sin()), batch_size=5, shuffle=True)
model = nn.Linear(4, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
torch.save(model.state_dict(), out / "epoch0.pt")
step = epoch = 0
while step < 12:
    for index, (inputs, targets) in enumerate(loader):
        if index == 5:  # a pass of five batches is enough
            break
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        optimizer.step()
        step += 1
        if step == 12:
            break
    epoch += 1
    torch.save(model.state_dict(), out / f"epoch{epoch}.pt")
    print(epoch, step, repr(loss.item()))
sys.exit(3)

"""A trainer class: SGD with Nesterov momentum, BatchNorm, a frozen layer, an EMA copy, loader workers."""

import sys
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(6, 10)
        self.norm = nn.BatchNorm1d(10)
        self.head = nn.Linear(10, 3)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.stem(x))))


class Trainer:
    def __init__(self, out):
        torch.manual_seed(1)
        self.out = out
        self.net = Net()
        self.net.stem.requires_grad_(False)
        self.ema = AveragedModel(self.net, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        self.optimizer = torch.optim.SGD(
            [
                {"params": self.net.norm.parameters(), "lr": 0.02},
                {"params": self.net.head.parameters()},
                {"params": self.net.stem.parameters()},
            ],
            lr=0.1,
            momentum=0.9,
            nesterov=True,
        )
        x = torch.randn(45, 6)
        data = TensorDataset(x, x.sum(1).long() % 3)
        self.loader = DataLoader(data, batch_size=10, shuffle=True, num_workers=2)

    def fit(self, epochs):
        torch.save(self.net.state_dict(), self.out / "epoch0.pt")
        for epoch in range(1, epochs + 1):
            total = 0.0
            for x, y in self.loader:
                self.optimizer.zero_grad(set_to_none=True)
                loss = nn.functional.cross_entropy(self.net(x), y)
                loss.backward()
                self.optimizer.step()
                self.ema.update_parameters(self.net)
                total += loss.item()
            torch.save(self.net.state_dict(), self.out / f"epoch{epoch}.pt")
            print(epoch, repr(total))


if __name__ == "__main__":
    Trainer(Path(sys.argv[1])).fit(2)

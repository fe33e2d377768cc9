"""AdamW with clipping and a cosine schedule, an evaluation after each epoch, the best weights put back at the end."""

import argparse
import copy
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader, TensorDataset


def evaluate(model, loader):
    model.eval()
    with torch.no_grad():
        right = sum((model(x).argmax(1) == y).sum().item() for x, y in loader)
    model.train()
    return right / len(loader.dataset)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()

    torch.manual_seed(0)
    x = torch.randn(70, 8)
    y = (x[:, 0] > 0).long()
    train = DataLoader(TensorDataset(x[:50], y[:50]), batch_size=8, shuffle=True)
    val = DataLoader(TensorDataset(x[50:], y[50:]), batch_size=8)
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Dropout(0.1), nn.Linear(16, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs * len(train))

    torch.save(model.state_dict(), args.out / "epoch0.pt")
    best, best_weights = -1.0, None
    for epoch in range(args.epochs):
        for xb, yb in train:
            loss = nn.functional.cross_entropy(model(xb), yb)
            optimizer.zero_grad()
            loss.backward()
            clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            scheduler.step()
        accuracy = evaluate(model, val)
        print(f"epoch {epoch}: loss {loss.item()!r}, accuracy {accuracy}")
        if accuracy > best:
            best, best_weights = accuracy, copy.deepcopy(model.state_dict())
        torch.save(model.state_dict(), args.out / f"epoch{epoch + 1}.pt")
    model.load_state_dict(best_weights)
    print(sys.argv[0].endswith("adamw_cosine.py"), torch.rand(1).item())
    return 7


if __name__ == "__main__":
    sys.exit(main())

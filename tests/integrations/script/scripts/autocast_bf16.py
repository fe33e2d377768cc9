"""Autocast in bfloat16 with a dict of tensors as batch, and a wrapper that fetches one batch ahead."""

import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Words(Dataset):
    def __init__(self):
        generator = torch.Generator().manual_seed(3)
        self.ids = torch.randint(0, 11, (26, 4), generator=generator)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return {"ids": self.ids[index], "labels": self.ids[index].sum() % 2}


class OneAhead:
    def __init__(self, loader):
        self.loader = loader

    def __iter__(self):
        batches = iter(self.loader)
        batch = next(batches)
        for following in batches:
            yield batch
            batch = following
        yield batch


def main(out):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Embedding(11, 8), nn.Flatten(), nn.Linear(32, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    loader = OneAhead(DataLoader(Words(), batch_size=5, shuffle=True))
    torch.save(model.state_dict(), out / "epoch0.pt")
    for epoch in range(1, 4):
        for batch in loader:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = nn.functional.cross_entropy(model(batch["ids"]), batch["labels"])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        print(epoch, repr(loss.item()))
        torch.save(model.state_dict(), out / f"epoch{epoch}.pt")


main(Path(sys.argv[1]))

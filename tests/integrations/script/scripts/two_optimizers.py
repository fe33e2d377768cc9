"""A small GAN: two models, two optimizers."""

import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

out = Path(sys.argv[1])
torch.manual_seed(4)
generator = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 3))
critic = nn.Sequential(nn.Linear(3, 6), nn.LeakyReLU(), nn.Linear(6, 1))
generator_optimizer = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.999))
critic_optimizer = torch.optim.Adam(critic.parameters(), lr=2e-3, betas=(0.5, 0.999))
loader = DataLoader(TensorDataset(torch.randn(20, 3)), batch_size=8, shuffle=True)
bce = nn.functional.binary_cross_entropy_with_logits

torch.save(generator.state_dict(), out / "epoch0.pt")
for epoch in range(1, 3):
    for (real,) in loader:
        fake = generator(torch.randn(len(real), 2))
        scores = critic(torch.cat([real, fake.detach()]))
        truth = torch.cat([torch.ones(len(real), 1), torch.zeros(len(real), 1)])
        critic_optimizer.zero_grad()
        bce(scores, truth).backward()
        critic_optimizer.step()
        generator_optimizer.zero_grad()
        loss = bce(critic(fake), torch.ones(len(real), 1))
        loss.backward()
        generator_optimizer.step()
    print(epoch, repr(loss.item()))
    torch.save(generator.state_dict(), out / f"epoch{epoch}.pt")

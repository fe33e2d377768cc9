"""Reading: from an `nn.Module` to the network of plain matrices that is bounded."""

"""Any PyTorch training script, recorded without a change to it: `tvgrad trace --out DIR -- COMMAND ...`."""

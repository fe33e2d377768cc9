"""The full-batch problem: samples, the loss of a batch, and its gradient over all samples."""

"""The network as float64 matrices: layers, skips, shared kernels, and certified spectral norms."""

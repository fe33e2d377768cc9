"""Numbers: precision settings, floating-point facts, and derivatives as PyTorch takes them."""

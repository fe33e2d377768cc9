"""What the theory says of a run: exact statements, predictions, bounds, each under its own word."""

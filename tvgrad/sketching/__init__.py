"""Long vectors in few numbers, with intervals."""

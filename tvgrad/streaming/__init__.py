"""Inner products of vectors that do not fit into memory, in one pass over their files."""

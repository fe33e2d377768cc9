"""The run directory on disk: the only room that knows its files."""

"""The command line: one file a command, installed as `tvgrad.cli`."""

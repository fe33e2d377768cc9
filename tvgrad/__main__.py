"""`python -m tvgrad`: the command line, for a shell that does not find `tvgrad`."""

import importlib

if __name__ == "__main__":
    importlib.import_module("tvgrad.cli.main").main()

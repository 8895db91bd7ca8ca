"""The command line: parses, calls the engine, prints. One file per command."""

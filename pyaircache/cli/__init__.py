"""The command line, ``pyaircache``: one file a command, `main` puts them together."""

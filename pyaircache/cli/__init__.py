"""The command line: ``pyaircache``; one file a command."""

"""The command lines: a file a command with its flags and its help, folders for the work of some."""

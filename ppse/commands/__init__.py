"""The commands of the command line, a group a file: thin wrappers around the library, with progress and clear messages."""

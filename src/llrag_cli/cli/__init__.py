"""The command line: options and help are here, work is imported inside the commands."""

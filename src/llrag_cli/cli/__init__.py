"""The command line: options and help are here, work is imported when it is asked for."""

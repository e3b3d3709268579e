"""The operator's side: command line, checks before a start, demo model, rendered files."""

"""Tasks for lm-eval whose questions lie in files on this machine: YAML files, and the code that reads the data."""

"""A family on a cluster, on paper: memory, communication, time, checkpoints and growth for any number of GPUs."""

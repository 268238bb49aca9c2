"""The `benchmark` command: forms of the model and a peer, timed in turns and compared with the hardware's limits."""

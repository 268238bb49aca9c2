"""The `benchmark` command: tasks, forms and peers, timed in turns, beside what the hardware allows."""

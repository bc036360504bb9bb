"""Training: order of the data, engine, step, loop and checkpoints."""

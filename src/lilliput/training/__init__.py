"""The training loop: data that is the same when it is read again, steps, checkpoints, teachers."""

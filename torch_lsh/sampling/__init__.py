"""The sampler of a wide set of rows: which rows take part in a training step."""

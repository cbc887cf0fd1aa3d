"""What layers and optimizers agree on about parameters of which a step touches few rows."""

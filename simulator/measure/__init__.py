"""Real training steps of real torch models on this machine, and what calibration alone predicts for them."""

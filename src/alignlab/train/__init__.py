"""Training: one loop for every model, its losses, optimiser, schedule and checkpoints."""

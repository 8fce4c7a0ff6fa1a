"""Training: phases, losses, updates, engines, the heartbeat, observers, checkpoints, the loop."""

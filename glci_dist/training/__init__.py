"""Training: phases, losses, updates, engines, the heartbeat, callbacks, checkpoints, the trainer."""

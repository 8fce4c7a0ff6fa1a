"""Training: phases, losses, the GAN train step, engines, metrics, callbacks, loggers, checkpoints, the trainer."""

"""A run's folder: whose it is, which attempt may write there, and what happened."""

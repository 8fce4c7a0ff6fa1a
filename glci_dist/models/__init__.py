"""The networks: completion networks, context discriminators, batch norm over the global batch."""

"""Reads what a contest of the networks came to, and names the ways in which it fails."""

"""Kills a run again and again, at random and at chosen instants, and holds its end against an undisturbed run."""

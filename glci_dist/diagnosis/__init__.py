"""Diagnosis of adversarial training from its scalars; `glci doctor`."""

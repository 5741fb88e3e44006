"""Sweeps: a command or a function over settings and seeds, one run directory each."""

"""Weights of few bits: how they are rounded, stored, multiplied by, and how far the result is from the original."""

"""Prompt sets, labelled pairs, held-out prose, and packing of examples into rows."""

from __future__ import annotations

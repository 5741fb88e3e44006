"""Alignment: constitution, critique and revision, preferences, PPO and DPO, and the pipeline that joins them."""

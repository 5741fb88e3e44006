"""Reinforcement learning of language models: rewards, objectives, and one loop for each method."""

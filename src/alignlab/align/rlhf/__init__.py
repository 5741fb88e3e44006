"""RLHF from end to end: demonstrations, a reward model from comparisons, reinforcement learning, an honest account."""

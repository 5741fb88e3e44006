"""Learning from preferences without a reward model and without sampling: DPO and its relatives."""

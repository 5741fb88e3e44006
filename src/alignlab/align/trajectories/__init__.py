"""Learning a reward from preferences between clips of what an agent does in a control task (Christiano et al. 2017)."""

"""Learning an Atari game from demonstrations and preferences between clips, without its score (Ibarz et al. 2018)."""

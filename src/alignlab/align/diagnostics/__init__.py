"""What can go wrong in a training against a reward, found from its records: alarms, KL budget, attribution."""

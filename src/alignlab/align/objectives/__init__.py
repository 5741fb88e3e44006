"""Several objectives at once: rewards put together, policies measured in each, fronts drawn."""

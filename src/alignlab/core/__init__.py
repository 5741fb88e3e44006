"""The floor of the house: configuration, runs, files, seeds, devices, progress and errors."""

"""Can a reward be trusted? Slices, calibration, robustness, and what happens to a gold reward when it is optimised."""

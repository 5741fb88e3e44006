"""One compiled pass of a model on the CPU: decoding steps and prompts without a torch operation in between."""

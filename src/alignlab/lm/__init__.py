"""Language models: one transformer, its weights and tokenizers, generation, and what adapts it."""

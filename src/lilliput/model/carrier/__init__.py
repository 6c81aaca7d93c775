"""How a module holds encoded tensors, and how such a module is copied, saved and told from others."""

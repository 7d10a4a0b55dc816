"""Network layers that any family of generators can use."""

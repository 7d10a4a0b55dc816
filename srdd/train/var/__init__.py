"""How the scale-wise tokenizer and transformer are trained."""

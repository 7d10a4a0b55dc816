"""Distillation of a transformer to fewer scales, in stages."""

"""Sweeps: sampler settings and models searched with Ray Tune and Optuna."""

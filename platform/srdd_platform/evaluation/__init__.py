"""Evaluation: images in, rows of metrics and costs out."""

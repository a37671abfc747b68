"""Experiments: scale in, figures, numbers and a report out."""

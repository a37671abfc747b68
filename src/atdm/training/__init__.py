"""The life of a run: its options, training, checkpoints, export and cost."""

"""Forward processes, what networks predict, and how models are sampled."""

"""Does experiments: jobs, what they found, and pages of it."""

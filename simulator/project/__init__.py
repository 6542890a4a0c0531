"""Training as a project: tokens, days, failures, dollars, energy."""

"""Tells Kubernetes which pods hold the fewest calls, so that a scale-down takes those."""

"""What gRPC's and torch's side of the codec say to each other about codes."""

MISSING = -1
"""The code of a codebook that a session does not have; it adds nothing to the sound."""

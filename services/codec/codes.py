"""The meaning of codes that the gRPC side and the torch side of the codec share."""

MISSING = -1
"""The code of a codebook that a session does not have; it adds nothing to the sound."""

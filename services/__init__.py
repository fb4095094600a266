"""The services; their release, as deploy/images and the wheel of stubs name it."""

__version__ = "0.1.0"

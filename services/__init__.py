"""The services; their release, as deploy/images and the wheel of stubs name it."""

import os

__version__ = "0.1.0"

# Before grpc is imported: it would write a line past our logs for each connection whose TLS fails, and any stranger
# can make some. With INFO it does, to look for the reason.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

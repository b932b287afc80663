"""Who talks to whom: client, compute party, dealer and model owner over gRPC with mutual TLS."""

import os

# gRPC's core writes every refused handshake to stderr; what a person needs to know of it is in our own errors.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

"""Who talks to whom: client, compute party, dealer and model owner over gRPC with mutual TLS."""

import os

# gRPC's core writes every refused handshake to stderr; what a person needs to know of it is in our own errors.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
# Its handlers of forks stop all its threads for as long as calls run, which sessions do: the process that forks would wait
# for a minute, and the new one be aborted. What a forked process may not do says `parties.transport.connection.begun`.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

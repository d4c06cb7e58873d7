"""The manager: store, orchestrators, dispatcher, Engine API, and the programs `swarmd`, `swarm`."""

import os

# Before any module loads grpc, which would print about every stranger that knocks.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

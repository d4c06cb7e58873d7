"""The node port (2378): who may call what, how errors travel, and how managers are found.

Import from the modules: this one stays empty, so that a lone manager, which needs only `remotes`,
does not load grpc.
"""

"""Between managers: Raft's messages and snapshots over gRPC with mutual TLS.

`transport.Transport` is the whole of it. Only this package and the generated `proto.v1` import
grpc, and the daemon imports this package only when there is more than one manager: a lone
manager does without its 13 MiB. `identity`, `outbox` and `limits` are pure and import no grpc.
"""

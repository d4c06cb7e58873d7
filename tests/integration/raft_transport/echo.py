"""A member that answers each message with its first 8 bytes; prints its port."""

import asyncio
import json
import random
import sys
from pathlib import Path

from proto.clock import SystemClock
from raft.transport.identity import Credentials
from raft.transport.transport import Transport


async def run(config):
    """Serve until killed."""
    credentials = Credentials(
        certificate_pem=config["certificate"].encode(),
        key_pem=config["key"].encode(),
        roots_pem=config["roots"].encode(),
    )

    def on_messages(node_id, messages):
        transport.send(node_id, [message[:8] for message in messages])

    async def on_snapshot(_node_id, _header, chunks):
        async for _chunk in chunks:
            pass

    transport = Transport(
        config["node_id"],
        config["cluster"],
        lambda: credentials,
        on_messages=on_messages,
        on_snapshot=on_snapshot,
        on_unreachable=lambda _node_id: None,
        is_allowed=lambda node_id: node_id == config["peer_id"],
        clock=SystemClock(),
        rng=random.Random(2),
    )
    port = await transport.start(f"127.0.0.1:{config['port']}")
    transport.set_peer(config["peer_id"], f"127.0.0.1:{config['peer_port']}")
    print(port, flush=True)
    await asyncio.Event().wait()


asyncio.run(run(json.loads(Path(sys.argv[1]).read_text())))

"""The node's data plane: desired links, addresses and rules in, the difference applied."""

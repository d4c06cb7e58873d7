"""The worker: turns assignments into containers on this node and reports what became of them."""

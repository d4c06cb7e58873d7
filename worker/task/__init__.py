"""A task's life on this node, decided without I/O: events in, instructions out."""

"""The scheduler: pure functions from a view of nodes and tasks to placements."""

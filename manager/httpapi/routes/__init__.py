"""The handlers of the Engine API, one module per group of paths; each has a `ROUTES` table."""

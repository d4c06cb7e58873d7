"""The lab: hosts that are namespaces on one Linux machine, each with its own `swarmd`."""

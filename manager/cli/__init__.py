"""The program `swarm`: commands that speak HTTP to a daemon; see README.md."""

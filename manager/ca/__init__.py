"""The cluster's certificate authority, and what a node does with what it was issued."""

"""Domain objects, identifiers, states and errors: imports none of our packages and does no I/O."""

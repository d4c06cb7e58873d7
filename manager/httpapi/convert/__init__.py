"""Engine JSON to domain objects and back; pure, one module per kind of object."""

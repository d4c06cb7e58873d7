"""The manager: store, orchestrators, dispatcher, Engine API, and the programs `swarmd`, `swarm`."""

"""The composition root: `swarmd`, the only place that imports everything."""

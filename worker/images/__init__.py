"""Images: a content-addressed store, layers unpacked once, registries through skopeo."""

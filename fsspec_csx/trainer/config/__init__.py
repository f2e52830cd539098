"""A training from YAML."""

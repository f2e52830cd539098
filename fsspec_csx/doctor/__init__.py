"""``cszoo checkpoint doctor``: the effective configuration, and what works with it."""

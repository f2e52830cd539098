"""save, load, inspect and async_save."""

"""Files on any fsspec filesystem: paths, and writes that replace a file only with a complete one."""

"""zarr and xarray store chunked arrays at s3:// URLs.

python examples/zarr_arrays.py s3://bucket/folder
"""

import sys

import numpy as np
import xarray as xr
import zarr


def main(root: str) -> None:
    """Write arrays in chunks, and read a part of each."""
    array = zarr.create_array(f"{root}/weights.zarr", shape=(256, 256), chunks=(128, 128), dtype="f4")
    array[:] = np.arange(256 * 256).reshape(256, 256)
    print("zarr:", zarr.open_array(f"{root}/weights.zarr", mode="r")[255, 254:])

    losses = xr.Dataset({"loss": ("step", np.linspace(1, 0, 101))}, {"step": np.arange(101)})
    losses.to_zarr(f"{root}/losses.zarr", mode="w", consolidated=False)
    stored = xr.open_zarr(f"{root}/losses.zarr", chunks=None, consolidated=False)
    print("xarray:", stored["loss"].sel(step=75).item())


if __name__ == "__main__":
    main(sys.argv[1])

#!/usr/bin/env bash
# arviz 0.23.0, h5netcdf 1.8.1, h5py 3.16.0: writing draws to a netCDF file with what ArviZ brings.
#
# Guess: `pip install arviz` suffices for InferenceData.to_netcdf: its engine, h5netcdf, comes with
#   it.
# Seen: h5netcdf comes, but h5py, on which it writes, does not, and to_netcdf raises an ImportError.
#   After `pip install h5py` the same line writes the file.
#
# Output seen:
#   arviz 0.23.0, h5netcdf 1.8.1
#   as installed: ImportError, No module named 'h5py'
#   with h5py: written
#
# Exits 0 while this holds, 1 when it does not, 2 when the packages (350 MB) cannot be installed.
set -u
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder" || exit 2
"$folder/bin/pip" install -q arviz==0.23.0 h5netcdf==1.8.1 numpy==2.2.6 xarray==2026.9.0 || exit 2

cat > "$folder/write.py" <<'PYTHON'
import sys
import warnings

warnings.simplefilter("ignore")
import arviz
import h5netcdf
import numpy

if len(sys.argv) == 2:
    print(f"arviz {arviz.__version__}, h5netcdf {h5netcdf.__version__}")
draws = arviz.from_dict({"x": numpy.zeros((2, 5))})
try:
    draws.to_netcdf(sys.argv[1])
    print("with h5py: written" if len(sys.argv) > 2 else "as installed: written")
except ImportError as error:
    print(f"as installed: ImportError, {str(error).split(',')[0]}")
    sys.exit(3)
PYTHON
"$folder/bin/python" "$folder/write.py" "$folder/draws.nc"
[ $? -eq 3 ] || exit 1
"$folder/bin/pip" install -q h5py==3.16.0 || exit 2
"$folder/bin/python" "$folder/write.py" "$folder/draws.nc" again || exit 1

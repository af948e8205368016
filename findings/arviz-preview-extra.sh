#!/usr/bin/env bash
# arviz 0.23.4, arviz-plots 0.8.0, matplotlib 3.11.2: what `pip install 'arviz[preview]'` chooses on
# Python 3.11.
#
# Guess: the extra adds arviz-base, arviz-stats and arviz-plots, the parts of the coming 1.0, and
#   what arviz had stays; pip finds no conflict.
# Seen: `import arviz` itself raises AttributeError. It imports arviz-plots where that is installed
#   (by the extra or by another package) and forgives only an ImportError; arviz-plots 0.8 reads
#   matplotlib.style.core, which matplotlib 3.11 does not import. Without arviz-plots it imports.
#
# Output seen:
#   No broken requirements found.
#   arviz 0.23.4
#   arviz-plots 0.8.0
#   matplotlib 3.11.2
#   with arviz-plots: AttributeError: module 'matplotlib.style' has no attribute 'core'
#   without arviz-plots: imported
#
# Exits 0 while this holds, 1 when it does not, 2 when the packages cannot be installed.
# FINDINGS_PYTHON=PYTHON runs it with the packages of that Python instead.
set -u
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=${FINDINGS_PYTHON:-}
if [ -z "$python" ]; then
    python3 -m venv "$folder" || exit 2
    "$folder/bin/pip" install -q 'arviz[preview]==0.23.4' arviz-base==0.8.2 arviz-plots==0.8.0 \
        arviz-stats==0.8.0 matplotlib==3.11.2 numpy==2.4.6 || exit 2
    python=$folder/bin/python
fi

"$python" -m pip check || exit 1
export HOME=$folder XDG_CACHE_HOME=$folder/cache # where arviz and matplotlib keep small files
"$python" - <<'PYTHON'
import subprocess
import sys
from importlib.metadata import version

for name in ("arviz", "arviz-plots", "matplotlib"):
    print(name, version(name))


def last_line(code):
    """What Python says last when it runs the code: the error, or what the code printed."""
    command = [sys.executable, "-W", "ignore", "-c", code]
    run = subprocess.run(command, capture_output=True, text=True)
    return (run.stdout + run.stderr).strip().splitlines()[-1]


beside = last_line("import arviz; print('imported')")
alone = last_line("import sys; sys.modules['arviz_plots'] = None; import arviz; print('imported')")
print("with arviz-plots:", beside)
print("without arviz-plots:", alone)
sys.exit(not (beside.startswith("AttributeError") and alone == "imported"))
PYTHON

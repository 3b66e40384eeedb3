"""Import this first: the package then comes from the source tree through Python's own finders.

atheris does not see the branches of what an editable install's finder loads.
"""

import sys
from pathlib import Path

sys.meta_path[:] = [finder for finder in sys.meta_path if "_editable" not in type(finder).__module__]
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

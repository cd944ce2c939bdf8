"""Hypothesis' settings for this folder: no deadline, no database, the same examples every time in CI."""

import atexit
import os
import shutil
import tempfile

from hypothesis import configuration, settings

# Hypothesis also keeps files beside its database (constants it found in the source): not in the tree.
_HOME = tempfile.mkdtemp(prefix="tpinit-hypothesis-")
configuration.set_hypothesis_home_dir(_HOME)
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)

settings.register_profile("tpinit", deadline=None, database=None, max_examples=150)
settings.register_profile("tpinit-ci", parent=settings.get_profile("tpinit"), derandomize=True)
settings.load_profile("tpinit-ci" if os.environ.get("CI") else "tpinit")

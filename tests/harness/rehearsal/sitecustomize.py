"""Python imports this first: it shows the process a GPU that is not there (stand_in.py)."""

import os
import sys
import traceback

is_hidden = os.environ.get("CUDA_VISIBLE_DEVICES") == ""
if os.environ.get("RADAM_REHEARSAL") and not is_hidden:
    try:
        from tests.harness.rehearsal import stand_in

        stand_in.install()
    except BaseException:  # Python would ignore it, and the tests would be skipped
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(70)

"""The command of the kernel-checked core."""

import sys

from tpinit.proofs.coq.main import main

sys.exit(main())

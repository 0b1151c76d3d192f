"""`python -m vlm_occ` is `vlm-occ`."""

import sys

from vlm_occ.cli import main

if __name__ == "__main__":
    sys.exit(main())

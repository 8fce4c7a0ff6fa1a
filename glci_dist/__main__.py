"""``python -m glci_dist`` is ``glci``; ``torchrun -m glci_dist`` is the same command in more processes."""

import sys

from glci_dist.cli import main

if __name__ == "__main__":
    sys.exit(main())

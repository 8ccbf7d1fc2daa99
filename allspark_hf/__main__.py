"""`python -m allspark_hf` is the command `allspark`, as is `accelerate launch -m allspark_hf`."""

import sys

from .cli.main import main


if __name__ == "__main__":
    sys.exit(main())

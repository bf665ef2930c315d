"""`python -m oneframe.app` is `oneframe`."""

import sys

from oneframe.app.main import main

if __name__ == "__main__":
    sys.exit(main())

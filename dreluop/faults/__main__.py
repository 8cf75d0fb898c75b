"""Command line: `python -m dreluop.faults curve CONFIG`."""

import sys

from dreluop.faults.command import main

sys.exit(main())

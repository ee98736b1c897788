"""The experiment on a real model. Modules that need torch import it themselves; reading stored results does not."""

import logging

# Importing bitsandbytes on a CPU logs the absence of an optional kernel package as a warning; it changes nothing here.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

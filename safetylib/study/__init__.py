"""The experiment on a real model. Modules that need torch import it themselves; reading stored results does not."""

import logging
import warnings

# Importing bitsandbytes on a CPU logs the absence of an optional kernel package as a warning; it changes nothing here.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
# tqdm falls back to plain text where ipywidgets is missing, which is what the book wants.
warnings.filterwarnings("ignore", message="IProgress not found")

"""No test reaches the real Hub; those that need one bring a loopback Hub and its environment."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

"""What every service shares: errors, server life cycle, channels, health."""

import os

# grpc reads this once, with its first channel or server. Threads of its event engine would read each message
# and hand it to the one that grpc.aio polls with. Without them that one reads for itself: a wake-up less for
# each message, a fifth of what a small one costs.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")

"""gunicorn reads this by itself. Without it the address would be 0.0.0.0:$PORT, which is right behind a balancer elsewhere."""

import os

bind = "127.0.0.1:" + os.environ.get("PORT", "5001")
workers = 2

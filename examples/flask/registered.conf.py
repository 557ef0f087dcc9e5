"""gunicorn registers itself: gunicorn -c registered.conf.py app:app

The master registers, once, not each worker. gunicorn has no hook for "before the workers are told to stop", so the handler
of SIGTERM is wrapped: balancers have sent their last request before the first worker goes.
"""

import os

from register import Registration

bind = "127.0.0.1:" + os.environ.get("PORT", "5001")
workers = 2
registration = None


def when_ready(server):
    global registration
    host, port = server.LISTENERS[0].getsockname()
    registration = Registration("flask", f"{host}:{port}").start()
    stop = server.handle_term

    def drain_and_stop():
        registration.drain()
        stop()

    server.handle_term = drain_and_stop


def on_exit(server):
    if registration:
        registration.leave()

"""A Flask service that knows nothing of etcd: "rota register" keeps it registered. See README.md."""

import os

from flask import Flask

app = Flask(__name__)
name = os.environ.get("ROTA_INSTANCE", "nobody in particular")


@app.get("/")
def index():
    return f"hello from {name}\n"


@app.get("/healthz")
def healthz():
    return "ok\n"

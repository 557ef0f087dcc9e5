#!/usr/bin/env python3
"""Keeps an instance registered in etcd, with nothing but the standard library: copy it into your service.

    registration = Registration("cart", "10.0.0.7:5001", version="1.4.2")
    registration.start()        # when the service answers; a thread keeps it from here on
    ...
    registration.drain()        # balancers send nothing more
    ...                         # stop the server
    registration.leave()

Or let it stand for something that runs elsewhere, until Ctrl-C or SIGTERM:

    python3 register.py cart 10.0.0.7:5001

A registration is kept for ever. A lost lease, a deleted or overwritten key, an outage of etcd: each ends in the key being
put again. It is fenced: every put and delete is a transaction on the key's revision, so a process that was paused can neither
overwrite nor delete the record of its successor, which has a greater incarnation; it learns that it is superseded.

Where etcd is: ROTA_ETCD_ENDPOINTS or ETCDCTL_ENDPOINTS, and likewise _USER ("name:password"), _CACERT, _CERT and _KEY.
Register once for each address, not once in each worker, and after forking: threads do not survive a fork.
"""

import base64
import json
import logging
import os
import random
import secrets
import socket
import ssl
import sys
import threading
import time
import urllib.error
import urllib.request

log = logging.getLogger("register")


def setting(name, default=""):
    return os.environ.get("ROTA_ETCD_" + name) or os.environ.get("ETCDCTL_" + name) or default


class Superseded(Exception):
    """A newer incarnation has the id. Nothing of it has been touched."""


class Etcd:
    """etcd's JSON over HTTP. Keys and values are base64 there, and 64-bit numbers are strings."""

    def __init__(self, timeout=2):
        self.timeout, self.token = timeout, None
        self.user, _, self.password = setting("USER").partition(":")
        secure = setting("CACERT") or setting("CERT")
        self.endpoints = [
            e if "://" in e else ("https://" if secure else "http://") + e
            for e in setting("ENDPOINTS", "127.0.0.1:2379").replace(" ", "").split(",")
        ]
        handlers = [urllib.request.ProxyHandler({})]  # whatever http_proxy says
        if any(e.startswith("https") for e in self.endpoints):
            context = ssl.create_default_context(cafile=setting("CACERT") or None)
            if setting("CERT"):
                context.load_cert_chain(setting("CERT"), setting("KEY"))
            handlers.append(urllib.request.HTTPSHandler(context=context))
        self.opener = urllib.request.build_opener(*handlers)

    def call(self, path, **body):
        """Asks one endpoint after the other. Raises OSError when none answers well; urllib's errors are such."""
        if self.user and not self.token and path != "auth/authenticate":
            self.token = self.call("auth/authenticate", name=self.user, password=self.password)["token"]
        for endpoint in list(self.endpoints):
            request = urllib.request.Request(endpoint + "/v3/" + path, json.dumps(body).encode())
            if self.token:
                request.add_header("Authorization", self.token)
            try:
                with self.opener.open(request, timeout=self.timeout) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                failure = OSError(f"etcd at {endpoint}: {error.read(300).decode(errors='replace').strip()}")
                if error.code == 401:
                    self.token = None  # it has expired: the next call gets another
                if error.code < 500:
                    raise failure from None  # the others would say the same
            except (OSError, ValueError) as error:
                failure = OSError(f"etcd at {endpoint}: {error}")
            self.endpoints.append(self.endpoints.pop(0))  # the next call begins with another one
        raise failure


def b64(text):
    return base64.b64encode(text.encode()).decode()


def incarnation():
    """26 characters that sort by time, as ULIDs do."""
    n = time.time_ns() // 1_000_000 << 80 | secrets.randbits(80)
    return "".join("0123456789ABCDEFGHJKMNPQRSTVWXYZ"[n >> shift & 31] for shift in range(125, -1, -5))


class Registration:
    """One instance being kept in etcd. Further fields of the record, such as weight or zone, are keyword arguments.

    error says why the key is not known to be in the store, and is None while it is; after Superseded it is over.
    """

    def __init__(self, service, address, id=None, ttl=10, prefix=None, **record):
        self.service = service
        self.id = id or f"{socket.gethostname()}-{address.rpartition(':')[2]}"
        self.prefix = prefix or os.environ.get("ROTA_ETCD_PREFIX") or "/rota"
        self.key = f"{self.prefix}/services/{self.service}/{self.id}"
        self.record = {"address": address, **record, "incarnation": incarnation()}
        self.ttl, self.etcd, self.error = ttl, Etcd(timeout=max(1, ttl / 5)), None
        self.lease, self.revision = None, "0"  # both strings, as etcd's JSON has them; the revision is our last put's
        self.unsaid = True  # the store does not have the record as it is
        self.lock = threading.Lock()  # one writer at a time
        self.leaving, self.process = threading.Event(), os.getpid()
        self.thread = threading.Thread(target=self._keep, name="register", daemon=True)

    def start(self):
        """Begins to keep the record. etcd need not be there yet."""
        self.record["registered_at"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.thread.start()
        return self

    def update(self, **fields):
        """Changes fields of the record, and the store's as soon as that is possible. Raises Superseded, or OSError when
        the store cannot be told now; it is told later."""
        with self.lock:
            self.record.update(fields)
            self.unsaid = True
            if self.lease:
                self._put()

    def drain(self, timeout=10):
        """Puts the state draining, and waits until every balancer has said that it sends nothing more. Returns whether
        they have within the timeout."""
        deadline = time.monotonic() + timeout
        try:
            self.update(state="draining", drain_ack=True)
            while time.monotonic() < deadline:
                balancers = self._under(f"{self.prefix}/balancers/")
                acks = self._under(f"{self.prefix}/acks/{self.service}/{self.id}/")
                if all(json.loads(acks.get(b, "{}")).get("incarnation") == self.record["incarnation"] for b in balancers):
                    return True
                time.sleep(0.05)
        except (OSError, ValueError, AttributeError, Superseded) as error:
            log.warning("not drained: %s", error)
        return False

    def leave(self):
        """Ends the registration. When etcd is away, the lease removes the record. In a forked worker it does nothing:
        the registration is its parent's."""
        if os.getpid() != self.process:
            return
        self.leaving.set()
        if self.thread.is_alive():
            self.thread.join(2 * self.etcd.timeout)
        try:
            if self.record.get("state") != "draining":
                self.update(state="draining")  # or it would look like a crash
            with self.lock:
                self._swap({"request_delete_range": {"key": b64(self.key)}})
            if self.lease:
                self.etcd.call("lease/revoke", ID=self.lease)
        except (OSError, Superseded) as error:
            log.warning("not deleted; the lease will do it: %s", error)

    def _keep(self):
        """Grants, puts and renews until told to leave, whatever happens."""
        pause = 0.1
        while not self.leaving.is_set():
            try:
                with self.lock:
                    self.lease = self.etcd.call("lease/grant", TTL=str(self.ttl))["ID"]
                    self._put()
                log.info("registered %s", self.key)
                self.error, pause = None, 0.1
                while not self.leaving.wait(self.ttl / 3):
                    if not self._renew():
                        raise OSError("the lease is lost")
                    with self.lock:
                        if not self.leaving.is_set():
                            self._look()
            except Superseded as error:
                self.error = error
                log.error("%s", error)
                return
            except (OSError, ValueError, KeyError) as error:
                if str(error) != str(self.error):
                    log.warning("not registered, trying again until it works: %s", error)
                self.error = error
                self.leaving.wait(pause * random.uniform(0.5, 1.5))
                pause = min(2 * pause, self.ttl / 4)

    def _renew(self):
        # The trap: a lease that has expired is answered with 200, too. Only the TTL is missing.
        return int(self.etcd.call("lease/keepalive", ID=self.lease)["result"].get("TTL", 0)) > 0

    def _look(self):
        """Puts the key again if somebody has deleted or overwritten it, or the store missed a change."""
        found = self.etcd.call("kv/range", key=b64(self.key)).get("kvs")
        if self.unsaid or not found or found[0]["mod_revision"] != self.revision:
            self._put()

    def _put(self):
        value = json.dumps(self.record, separators=(",", ":"))
        self._swap({"request_put": {"key": b64(self.key), "value": b64(value), "lease": self.lease}})
        self.unsaid = False

    def _swap(self, then):
        """Does a put or delete if the key is as we know it. Else it finds out whose it is, and tries again unless it is
        our successor's."""
        while True:
            compare = {"key": b64(self.key), "target": "MOD", "result": "EQUAL", "mod_revision": self.revision}
            answer = self.etcd.call("kv/txn", compare=[compare], success=[then], failure=[{"request_range": {"key": b64(self.key)}}])
            if answer.get("succeeded"):
                self.revision = answer["header"]["revision"] if "request_put" in then else "0"
                return
            found = answer["responses"][0]["response_range"].get("kvs")
            self.revision = found[0]["mod_revision"] if found else "0"
            whose = self._whose(found[0]["value"]) if found else ""
            if whose > self.record["incarnation"]:
                raise Superseded(f"{self.key} is a newer incarnation's; if both are to run, give each an id of its own")
            if "request_delete_range" in then and whose != self.record["incarnation"]:
                return  # it is gone, or another's

    @staticmethod
    def _whose(value):
        try:
            return str(json.loads(base64.b64decode(value)).get("incarnation", ""))
        except (ValueError, AttributeError):
            return ""  # not a record as we write it

    def _under(self, prefix):
        """The values under a prefix, which ends in a slash, by the rest of their key."""
        found = self.etcd.call("kv/range", key=b64(prefix), range_end=b64(prefix[:-1] + "0")).get("kvs", [])
        return {
            base64.b64decode(kv["key"]).decode()[len(prefix):]: base64.b64decode(kv.get("value", "")).decode() for kv in found
        }


def main(ttl=10):
    import signal

    if len(sys.argv) not in (3, 4):
        sys.exit("usage: register.py <service> <host:port> [<id>]")
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    registration = Registration(*sys.argv[1:], ttl=ttl).start()
    while registration.thread.is_alive() and not stop.wait(0.2):
        pass
    if isinstance(registration.error, Superseded):
        sys.exit(1)
    registration.drain()
    registration.leave()


if __name__ == "__main__":
    main()

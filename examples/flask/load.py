#!/usr/bin/env python3
"""Asks a URL over and over for some seconds, and says who answered and what failed.

    python3 load.py http://localhost:8080/flask/ 10
"""

import collections
import http.client
import sys
import threading
import time
import urllib.parse

CLIENTS = 4


def main():
    url, seconds = urllib.parse.urlsplit(sys.argv[1]), float(sys.argv[2])
    end = time.monotonic() + seconds
    answers, failures = collections.Counter(), collections.Counter()

    def ask():
        connection = http.client.HTTPConnection(url.netloc, timeout=10)
        while time.monotonic() < end:
            try:
                connection.request("GET", url.path or "/")
                answer = connection.getresponse()
                text = answer.read().decode().strip()
                if answer.status == 200:
                    answers[text] += 1
                else:
                    failures[f"{answer.status} {answer.headers.get('X-Rota-Reason')}"] += 1
            except (OSError, http.client.HTTPException) as error:
                failures[repr(error)] += 1
                connection.close()
            time.sleep(0.005)

    clients = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    for c in clients:
        c.start()
    while time.monotonic() < end:
        time.sleep(min(1, max(0, end - time.monotonic())))
        print("   ", ", ".join(f"{who}: {n}" for who, n in sorted(answers.items())), flush=True)
    for c in clients:
        c.join()
    print(f"    {sum(answers.values())} requests answered, {sum(failures.values())} failed", *failures.items(), flush=True)
    sys.exit(1 if failures or not answers else 0)


if __name__ == "__main__":
    main()

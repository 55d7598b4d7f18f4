"""Waits for a condition; finds a free port."""

import socket
import time

import psycopg2


class NotReady(Exception):
    """A condition did not come true within its time."""


def free_port(host):
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def wait_for(what, happens, limit_s, pause_s=0.1):
    """Waits until happens() is true. Returns the seconds that took."""
    start = time.monotonic()
    while True:
        try:
            if happens():
                return time.monotonic() - start
        except (OSError, psycopg2.Error):
            pass  # not ready yet
        if time.monotonic() - start > limit_s:
            raise NotReady(f"no {what} within {limit_s} s")
        time.sleep(pause_s)

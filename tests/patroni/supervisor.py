"""Starts what the test needs and keeps watch: whatever becomes of the test, nothing of it stays."""

import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback

USER = "postgres"  # initdb and postgres refuse to run as root
PR_SET_CHILD_SUBREAPER = 36
PR_SET_PDEATHSIG = 1
SHUTDOWN_S = 5.0
POLL_S = 0.05

_libc = ctypes.CDLL(None, use_errno=True)


def watch(body, limit_s, keep):
    """Runs body(directory) in a child and returns its exit code; then ends all it left behind.

    The supervisor is the subreaper: a process whose parent is gone (each postmaster is such a one,
    Patroni detaches it) becomes the supervisor's own child instead of the system's, so "all that the
    test started" is exactly "all descendants of the supervisor", and nothing else is ever signalled.
    """
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    directory = tempfile.mkdtemp(prefix="patroniglue-test-")
    owner = pwd.getpwnam(USER)
    os.chown(directory, owner.pw_uid, owner.pw_gid)
    child = os.fork()
    if child == 0:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        _run(body, directory)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: os.kill(child, signal.SIGTERM))
    try:
        return _wait(child, limit_s)
    finally:
        _sweep()
        if keep:
            print(f"kept: {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)


def spawn(argv, log, cwd):
    """Starts a daemon as user postgres in a session of its own; it gets SIGTERM should we die.

    setpriv instead of a preexec function: it sets the signal after the change of user, which
    would clear it, and runs no Python between fork and exec of a process with threads.
    """
    assert threading.current_thread() is threading.main_thread(), "the signal follows the thread"
    with open(log, "ab") as output:
        return subprocess.Popen(
            as_user("--pdeathsig", "TERM", "--", *argv), cwd=cwd, env=environment(cwd),
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True)


def as_user(*argv):
    return ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", *argv]


def environment(home):
    # Not ours: PATRONI_* variables would change every node's configuration, PG* every connection.
    return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": home}


def descendants(root):
    """Process ids below root, parents before children."""
    children = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
                # The name stands in brackets and may hold anything; state and parent follow it.
                parent = int(stat.read().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(parent, []).append(int(pid))
    found, queue = [], [root]
    while queue:
        below = children.get(queue.pop(0), [])
        found += below
        queue += below
    return found


def kill(pid, number):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def _run(body, directory):
    """The child's whole life: it must not come back into the code of its parent."""
    code = 1
    try:
        code = body(directory)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _wait(child, limit_s):
    start = time.monotonic()
    # First a word, so that it can still say what it found, then the end.
    orders = [(limit_s, signal.SIGTERM), (limit_s + SHUTDOWN_S, signal.SIGKILL)]
    while True:
        pid, status = _reap()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 1
        if orders and time.monotonic() - start > orders[0][0]:
            print(f"the test has run for more than {limit_s} s: ending it")
            kill(child, orders.pop(0)[1])
        if pid == 0:
            time.sleep(POLL_S)


def _reap():
    try:
        return os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return 0, 0


def _sweep():
    """Ends every descendant; postmasters by SIGQUIT, so that they give back shared memory."""
    def postmasters():
        return [pid for pid in descendants(os.getpid()) if _name(pid) == "postgres"]

    for pid in descendants(os.getpid()):
        if _name(pid) != "postgres":
            kill(pid, signal.SIGKILL)
    for pid in postmasters():
        kill(pid, signal.SIGCONT)
        kill(pid, signal.SIGQUIT)
    give_up = time.monotonic() + SHUTDOWN_S
    while descendants(os.getpid()):
        if time.monotonic() > give_up:
            for pid in descendants(os.getpid()):
                kill(pid, signal.SIGKILL)
        while _reap()[0] > 0:
            pass
        time.sleep(POLL_S)


def _name(pid):
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as comm:
            return comm.read().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""

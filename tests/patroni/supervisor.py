"""Starts the test's processes and ends all of them, however the test ends."""

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
    """Runs body(directory) in a child, ends all processes that remain, returns the exit code.

    The supervisor is a subreaper: a process whose parent has ended (Patroni detaches each
    postmaster) becomes the supervisor's child instead of init's. So the processes that the test
    started are exactly the supervisor's descendants, and no other process is ever signalled.
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
    """Starts a daemon as user postgres in its own session. It gets SIGTERM if this process dies.

    setpriv instead of a preexec function: it sets that signal after the change of user, which
    would clear it, and runs no Python between fork and exec in a process that has threads.
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
    # Inherits nothing: PATRONI_* would change every node's configuration, PG* every connection.
    return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": home}


def descendants(root):
    """Process ids below root, parents before children."""
    children = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
                # The name is in parentheses and can contain any byte; state and parent follow.
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
    """Runs in the child and ends it: it must not return into the code of its parent."""
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
    # SIGTERM first, so that the test can still print its result.
    signals = [(limit_s, signal.SIGTERM), (limit_s + SHUTDOWN_S, signal.SIGKILL)]
    while True:
        pid, status = _reap()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 1
        if signals and time.monotonic() - start > signals[0][0]:
            print(f"the test exceeded {limit_s} s: ending it")
            kill(child, signals.pop(0)[1])
        if pid == 0:
            time.sleep(POLL_S)


def _reap():
    try:
        return os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return 0, 0


def _sweep():
    """Ends every descendant; postmasters with SIGQUIT, so that they free shared memory."""
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

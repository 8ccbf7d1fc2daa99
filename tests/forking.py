"""A Python that starts at once: forked from one that has imported the package and has run nothing yet.

[`python`] stands for `sys.executable` where a test starts scripts for what only a process shows: exit codes, signals,
launchers. Arguments, environment, folder and streams are those of the start, but libraries have read their
environment variables before.
"""

import contextlib
import gc
import json
import logging
import os
import runpy
import select
import signal
import socket
import sys
import tempfile
import traceback
from pathlib import Path


# Hands all it has to the server, and then behaves as the process that is forked there does.
CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
channel = socket.socket(socket.AF_UNIX)
channel.connect({address!r})
request = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(channel, [len(request).to_bytes(4, "big")], [0, 1, 2])
channel.sendall(request)
pid = int.from_bytes(channel.recv(4), "big")
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: os.kill(pid, number))
status = int.from_bytes(channel.recv(4), "big")
if os.WIFSIGNALED(status):
    if os.WTERMSIG(status) != signal.SIGKILL:
        signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
    os.kill(os.getpid(), os.WTERMSIG(status))
os._exit(os.WEXITSTATUS(status))
"""
_started = {}


def python() -> str:
    """The file to start instead of `sys.executable`, with a script, `-m` and a module, or `-c` and code."""
    return _started["python"]


def begin():
    """Forks the server, before any test is imported. It ends with this process."""
    folder = tempfile.TemporaryDirectory(prefix="forking_")
    address, client = str(Path(folder.name, "socket")), Path(folder.name, "python")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    client.write_text(CLIENT.format(python=sys.executable, address=address), encoding="utf-8")
    client.chmod(0o700)
    ended, alive = os.pipe()
    gc.freeze()
    if os.fork() == 0:
        try:
            _forget_the_tests(listener.fileno(), ended)
            _serve(listener, ended)
        finally:
            os._exit(1)
    listener.close()
    os.close(ended)
    gc.unfreeze()
    _started.update(python=str(client), folder=folder, alive=alive)


def _forget_the_tests(*kept: int):
    """Streams, files and paths of pytest, and what conftest.py is imported from."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(null, stream)
    for descriptor in map(int, os.listdir("/dev/fd")):
        if descriptor > 2 and descriptor not in kept:
            with contextlib.suppress(OSError):  # that of the listing
                os.close(descriptor)
    tests = str(Path(__file__).parent)
    sys.path[:] = [path for path in sys.path if path not in ("", tests)]
    for name, module in list(sys.modules.items()):
        if name != __name__ and str(getattr(module, "__file__", None)).startswith(tests):
            del sys.modules[name]
    logging.getLogger().handlers = []
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers


def _serve(listener: socket.socket, ended: int):
    while True:
        ready, _, _ = select.select([listener, ended], [], [])
        if ended in ready:
            os._exit(0)
        channel, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            os.close(ended)
            _keep(channel)
        channel.close()


def _keep(channel: socket.socket):
    """Forks what the client asks for, tells it the process and at last its status; ends it if the client is gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, streams, _, _ = socket.recv_fds(channel, 4, 3)
    with channel.makefile("rb") as file:
        request = json.loads(file.read(int.from_bytes(size, "big")))
    child = os.fork()
    if child == 0:
        channel.close()
        _run(*request, streams)
    for stream in streams:
        os.close(stream)
    channel.sendall(child.to_bytes(4, "big"))
    while True:
        gone, _, _ = select.select([channel], [], [], 0.02)
        if gone:
            os.kill(child, signal.SIGKILL)
        pid, status = os.waitpid(child, 0 if gone else os.WNOHANG)
        if pid:
            if not gone:
                channel.sendall(status.to_bytes(4, "big"))
            os._exit(0)


def _run(command: list[str], folder: str, environment: dict[str, str], streams: list[int]):
    """As Python runs a script, a module or code; then the process ends."""
    for target, stream in enumerate(streams):
        os.dup2(stream, target)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    for name in logging.root.manager.loggerDict:
        for handler in logging.getLogger(name).handlers:
            if type(handler) is logging.StreamHandler:
                handler.setStream(sys.stderr)
    if command[0] == "-u":
        sys.stdout.reconfigure(line_buffering=True)
        del command[0]
    code = 0
    try:
        _run_command(command)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else bool(stop.code)
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    for stream in (sys.stdout, sys.stderr):
        if not stream.closed:
            stream.flush()
    os._exit(code)


def _run_command(command: list[str]):
    if command[0] in ("-m", "-c"):
        option, what, *arguments = command
        sys.argv = [option, *arguments]
        sys.path.insert(0, "")
        if option == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = command
        sys.path.insert(0, os.path.dirname(os.path.abspath(command[0])))
        runpy.run_path(command[0], run_name="__main__")

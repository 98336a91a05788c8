"""Keep one server alive for as long as the process that asked for it, and not a moment longer.

Run as `python keeper.py FOLDER SIGNAL COMMAND...`. The keeper starts COMMAND and waits for the end
of its own standard input, whose other end the asking process holds; that end comes even when the
asker is killed. Then it stops COMMAND by SIGNAL, by force after ten seconds, and removes FOLDER. It
runs as the asker's user; the command runs as the owner of FOLDER, since PostgreSQL refuses root.

Standard library only, and run by path, so that it starts in a few milliseconds.
"""

import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence

GRACE_S = 10
ENDED = "keeper: the server ended"  # the last line of its log


def keep(folder: str, stop_signal: signal.Signals, command: Sequence[str]) -> int:
    """Run `command` until our standard input ends or it exits; then remove `folder`."""
    # The terminal's Ctrl-C is for the asker; we follow when its end of the pipe closes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    owner = os.stat(folder)
    as_owner = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}
    try:
        with open(os.path.join(folder, "server.log"), "ab", buffering=0) as log:
            server = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                start_new_session=True,
                **(as_owner if os.geteuid() == 0 else {}),
            )
            while server.poll() is None and not _input_ended():
                pass
            if server.poll() is None:
                _stop(server, stop_signal)
            log.write(f"{ENDED} with exit code {server.returncode}\n".encode())
        return server.returncode
    finally:
        # The log says why a server did not start, so it stays until the asker hangs up.
        while not _input_ended():
            pass
        shutil.rmtree(folder, ignore_errors=True)


def _stop(server: subprocess.Popen[bytes], stop_signal: signal.Signals) -> None:
    server.send_signal(stop_signal)
    try:
        server.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _input_ended() -> bool:
    ready, _, _ = select.select([sys.stdin], [], [], 0.1)
    return bool(ready) and not os.read(sys.stdin.fileno(), 1024)


if __name__ == "__main__":
    sys.exit(keep(sys.argv[1], signal.Signals[sys.argv[2]], sys.argv[3:]))

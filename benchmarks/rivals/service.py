"""Servers other than PostgreSQL: get Debian's, and run one that ends with this process."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pathlib
import shutil
import signal
import subprocess
import time
from collections.abc import Callable

import servers

from benchmarks.rivals import Unavailable

POLICY = pathlib.Path("/usr/sbin/policy-rc.d")
PR_SET_PDEATHSIG = 1


def get_program(program: str, package: str) -> str:
    """The path of a program, from Debian's package if it is missing and may be installed."""
    # What Debian puts on the PATH for RabbitMQ runs as a user of its own only.
    path = os.pathsep.join(["/usr/lib/rabbitmq/bin", os.environ.get("PATH", os.defpath)])
    if found := shutil.which(program, path=path):
        return found
    # The package of a server also starts it, now and whenever the machine boots; the former can be told not to.
    if not servers.has_apt() or pathlib.Path("/run/systemd/system").exists():
        raise Unavailable(f"{program} is missing: install it (Debian: {package})")
    denied = not POLICY.exists()
    if denied:
        POLICY.write_text("#!/bin/sh\nexit 101\n")
        POLICY.chmod(0o755)
    try:
        servers.apt_install(package)
    except servers.Missing as missing:
        raise Unavailable(str(missing)) from None
    finally:
        if denied:
            POLICY.unlink()
    return get_program(program, package)


class Service:
    """A running server, with its log in a directory. Only its own process and those it starts are ended."""

    def __init__(self, directory: pathlib.Path, command: list[str | os.PathLike[str]], **environment: str) -> None:
        directory.mkdir(exist_ok=True)
        self.log = directory / "log"
        prctl = ctypes.CDLL(None).prctl
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                command,
                cwd=directory,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                # However this process ends, the server does not outlive it.
                preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGTERM),
            )

    def read_log(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self, ready: Callable[[], bool], seconds: float = 60) -> None:
        """Wait until the server is ready."""
        limit = time.monotonic() + seconds
        while not ready():
            if self.process.poll() is not None or time.monotonic() > limit:
                lines = self.read_log().strip().splitlines()
                self.stop()
                raise Unavailable(f"{self.process.args[0]} did not start: {lines[-1] if lines else 'no message'}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End the server; its data is thrown away, so at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

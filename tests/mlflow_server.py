"""PostgreSQL and `mlflow server` as a company runs them, each a process of this test's own, on 127.0.0.1 alone."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

BINARIES = Path("/usr/lib/postgresql/15/bin")
USER, DATABASE_PASSWORD = "potstill", "a-database-secret"
ADMIN, ADMIN_PASSWORD = "admin", "an-administrators-secret"
STARTED_S = 120.0


@dataclass(frozen=True)
class Server:
    """An MLflow server's address without and with its administrator's password, and where it writes its log."""

    url: str
    log: Path
    secrets: tuple[str, ...]

    @property
    def with_password(self) -> str:
        return self.url.replace("http://", f"http://{ADMIN}:{ADMIN_PASSWORD}@")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _as_postgres() -> list[str]:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return []
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]


@contextmanager
def postgresql() -> Iterator[str]:
    """The address of an empty database, password included; skips the test where PostgreSQL is not installed."""
    if not (BINARIES / "initdb").is_file():
        pytest.skip(f"PostgreSQL 15 is not installed (no {BINARIES}/initdb; Debian: apt-get install postgresql-15)")
    folder = Path(tempfile.mkdtemp(prefix="potstill-postgres-"))
    word = folder / "password"
    word.write_text(DATABASE_PASSWORD)
    if os.geteuid() == 0:
        for path in (folder, word):
            shutil.chown(path, "postgres", "postgres")
    data, port = folder / "data", free_port()
    control = [*_as_postgres(), str(BINARIES / "pg_ctl"), "-w", "-D", str(data)]
    options = f"-p {port} -h 127.0.0.1 -k {folder} -F"

    def run(*words: str) -> None:
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    try:
        run(*_as_postgres(), str(BINARIES / "initdb"), "-N", "-U", USER, "-A", "scram-sha-256",
            f"--pwfile={word}", "-E", "UTF8", "--locale=C", str(data))  # fmt: skip
        run(*control, "-l", str(folder / "log"), "-o", options, "start")
        try:
            yield f"postgresql+psycopg2://{USER}:{DATABASE_PASSWORD}@127.0.0.1:{port}/postgres"
        finally:
            run(*control, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


@contextmanager
def mlflow_server(folder: Path, backend: str, *, workers: int = 1) -> Iterator[Server]:
    """A server with basic auth and proxied artifacts over the given database."""
    port = free_port()
    settings = folder / "auth.ini"
    settings.write_text(
        "[mlflow]\ndefault_permission = READ\n"
        f"database_uri = sqlite:///{folder / 'auth.db'}\nadmin_username = {ADMIN}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\nauth_cache_ttl_seconds = 300\n"
    )
    words = [
        sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--host", "127.0.0.1",
        "--port", str(port), "--workers", str(workers), "--backend-store-uri", backend, "--serve-artifacts",
        "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    environment = os.environ | {
        "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN_PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "a-cookie-secret",
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    environment.pop("MLFLOW_TRACKING_URI", None)
    server = Server(f"http://127.0.0.1:{port}", folder / "server.log", (ADMIN_PASSWORD, DATABASE_PASSWORD))
    with server.log.open("w") as log:
        process = subprocess.Popen(
            words, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _wait(server, process)
        yield server
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # it holds nothing that has to be kept
            process.wait(30)


def _wait(server: Server, process: subprocess.Popen[bytes]) -> None:
    import httpx

    until = time.monotonic() + STARTED_S
    while time.monotonic() < until:
        assert process.poll() is None, server.log.read_text()[-4000:]
        try:
            if httpx.get(f"{server.url}/health", timeout=5.0).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.3)
    raise AssertionError(f"no MLflow server after {STARTED_S:.0f} s: {server.log.read_text()[-4000:]}")

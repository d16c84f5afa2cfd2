"""Promises of the files under deploy/: they name what is there, open nothing to the world, and parse."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
ROOT = DEPLOY.parent
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())


@pytest.mark.parametrize("name", ["Dockerfile", "mlflow.Dockerfile"])
def test_an_image_copies_only_what_the_repository_has(name: str) -> None:
    text = (DEPLOY / name).read_text()
    copied = [each.split()[:-1] for each in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE)]
    assert copied
    for source in (path for paths in copied for path in paths):
        assert (ROOT / source).exists(), source


def test_every_port_is_bound_to_loopback() -> None:
    for name, service in COMPOSE["services"].items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), (name, port)


def test_a_server_that_others_can_reach_asks_for_a_key() -> None:
    for words in (COMPOSE["services"]["potstill"]["command"], re.findall(r'"([^"]*)"', _last_cmd("Dockerfile"))):
        assert "host=0.0.0.0" in words
        assert "keys=[POTSTILL_KEY]" in words


def test_no_secret_has_a_default() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    assert re.findall(r"\$\{(\w+):-[^}]*\}", text) == ["MODEL"]
    assert set(re.findall(r"\$\{(\w+):\?", text)) == {"POTSTILL_KEY", "POSTGRES_PASSWORD"}


def test_every_volume_and_file_that_a_service_mounts_is_there() -> None:
    named = set(COMPOSE["volumes"])
    for service in COMPOSE["services"].values():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            if source.startswith("./"):
                assert (DEPLOY / source).is_file(), source
            elif not source.startswith("$"):
                assert source in named


def test_the_settings_in_the_commands_are_settings_of_serve() -> None:
    from potstill.commands.serve import settings_from

    words = [each for each in COMPOSE["services"]["potstill"]["command"] if "=" in each]
    settings = settings_from(words)
    assert (settings.host, settings.port, settings.state.redis) == ("0.0.0.0", 8080, "REDIS_URL")


def test_the_unit_is_one_that_systemd_accepts(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / "potstill.service"
    unit.write_text((DEPLOY / "potstill.service").read_text().replace("/opt/potstill/bin/potstill", "/bin/true"))
    done = subprocess.run([analyze, "verify", str(unit)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _last_cmd(name: str) -> str:
    return next(each for each in reversed((DEPLOY / name).read_text().splitlines()) if each.startswith("CMD "))

"""Promises of the OpenAPI document: it is valid, asks for nothing from elsewhere, and is true (schemathesis)."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from tempfile import TemporaryDirectory

import httpx
import pytest

from potstill.serving.app import ROUTES, route_of
from potstill.serving.batches.settings import BatchSettings
from potstill.serving.openapi import document
from tests.serving.mock_door import MockDoor, mock_door


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MockDoor]:
    with mock_door(tmp_path_factory.mktemp("door"), batches=BatchSettings()) as found:
        yield found


def test_the_document_is_valid_and_names_every_route_that_there_is(door: MockDoor) -> None:
    validator = pytest.importorskip("openapi_spec_validator", reason="openapi-spec-validator is not installed")
    found = httpx.get(f"{door.url}/openapi.json").json()
    validator.validate(found)
    named = {(method.upper(), route_of(re.sub(r"\{\w+\}", "x", path))) for path, each in found["paths"].items()
             for method in each if method != "parameters"}  # fmt: skip
    of_operators = {each for each in ROUTES if each[1].startswith(("/admin/", "/dashboard"))}
    assert named == set(ROUTES) - {("GET", "/openapi.json"), ("GET", "/docs")} - of_operators
    assert "/v1/batches" not in document(batches=False, keys=False)["paths"]
    assert document(batches=False, keys=True)["security"] == [{"key": []}]


def test_the_page_asks_nobody_else(door: MockDoor) -> None:
    page = httpx.get(f"{door.url}/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "http" not in page.text.replace("http-equiv", "")
    assert "default-src 'none'" in page.headers["content-security-policy"]


CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance",
    "negative_data_rejection", "unsupported_method",
)  # fmt: skip


def explore(door: MockDoor, examples: int) -> str:
    """What `schemathesis run` reports of every operation, put with lawful and unlawful requests; fails as it does."""
    pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"{door.url}/openapi.json", "--checks", ",".join(CHECKS),
        "--max-examples", str(examples), "--phases", "examples,coverage,fuzzing", "--generation-deterministic",
        "--no-color", "--request-timeout", "30", "--suppress-health-check", "all",
    ]  # fmt: skip
    with TemporaryDirectory() as folder:  # it keeps a cache where it stands
        done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False, cwd=folder)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


def test_every_operation_keeps_to_the_document(door: MockDoor) -> None:
    print(explore(door, 5)[-1500:])


@pytest.mark.slow
def test_every_operation_keeps_to_the_document_at_length(door: MockDoor) -> None:
    print(explore(door, 500)[-1500:])

"""The JSON of the commands: its schema is current, and what the commands print is valid by it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from examsend.commands import finalize, send, status
from examsend.config.settings import Settings
from examsend.db import engine
from examsend.demo import receiver, samples
from tests.helpers import add, cli, execute
from tests.passes.world import World, file

DOCS = Path(__file__).parents[1] / "docs"
SCHEMA = json.loads((DOCS / "schema.json").read_text())
VALID = jsonschema.Draft202012Validator(SCHEMA)


def _of(definition: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator({"$ref": f"#/$defs/{definition}", "$defs": SCHEMA["$defs"]})


def _checked(done: subprocess.CompletedProcess[str], definition: str) -> Any:
    document = json.loads(done.stdout)
    _of(definition).validate(document)
    return document


def test_the_schema_is_that_of_the_program() -> None:
    spec = importlib.util.spec_from_file_location("make_schema", DOCS / "make_schema.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_schema"] = module
    spec.loader.exec_module(module)
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert module.make() == SCHEMA, "run: python docs/make_schema.py"


def test_what_the_commands_print_is_valid(database_url: str, receiving: receiver.Receiver, tmp_path: Path) -> None:
    samples.make(tmp_path / "drop")
    address = f"{receiving.aet}@{receiving.host}:{receiving.port}"

    def run(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        return cli(*words, "--json", url=database_url, **environment)

    _checked(run("destination", "add", "pacs", address, "--quiet-period", "0"), "destination.Changed")
    _checked(run("destination", "list"), "destination.Destinations")
    _checked(run("destination", "show", "pacs"), "destination.Shown")
    _checked(run("destination", "echo", "pacs"), "destination.Echoed")
    ingested = _checked(run("ingest", tmp_path / "drop", EXAMSEND_INCOMPLETE_AFTER="0"), "ingest.IngestResult")
    study = ingested["batches"][0]["study_instance_uid"]
    _checked(run("finalize", "--dry-run"), "finalize.FinalizeResult")
    _checked(run("finalize"), "finalize.FinalizeResult")
    sent = _checked(run("send"), "send.SendResult")
    batch = sent["delivered"][0]
    assert {"id", "study_instance_uid", "destination", "status"} <= batch.keys()
    for words in ((), (str(batch["id"]),), ("--study", study), ("--state", "SENT"), ("--rejected",)):
        _checked(run("status", *words), "status.StatusResult")
    _checked(run("status", "--check"), "status.CheckResult")
    _checked(run("explain", str(batch["id"])), "explain.ExplainResult")
    _checked(run("rejected"), "rejected.RejectedResult")
    _checked(run("retry", "--all-failed"), "retry.RetryResult")
    _checked(run("prune", "--older-than", "90d", "--dry-run"), "prune.PruneResult")
    _checked(run("db", "check"), "db.SchemaResult")
    for command in ("show", "check"):
        VALID.validate(json.loads(run("config", command).stdout))


@pytest.mark.parametrize(
    ("words", "code"), [(("status", "999"), 2), (("send", "--nonsense"), 2), (("destination", "show", "nobody"), 2)]
)
def test_an_error_is_valid_too(database_url: str, words: tuple[str, ...], code: int) -> None:
    done = cli(*words, "--json", url=database_url)
    document = _checked(done, "error")
    assert (done.returncode, document["error"]["exit_code"]) == (code, code)


# --- status --study --wait --------------------------------------------------------------------------------------------


def test_waiting_for_a_study_ends_with_its_delivery(
    settings: Settings, database: engine.Database, receiving: receiver.Receiver, tmp_path: Path
) -> None:
    study = samples.new_uid()
    samples.ct_study(tmp_path / "drop", 2, size=8, study=study)
    add(settings, f"{receiving.aet}@{receiving.host}:{receiving.port}")
    cli("ingest", tmp_path / "drop", url=settings.database_url, EXAMSEND_SETTLE="0")

    def deliver() -> None:
        time.sleep(1.5)
        finalize.run(settings, studies=[study])
        send.run(settings)

    thread = threading.Thread(target=deliver)
    thread.start()
    result = status.wait(settings, study, timeout=60)
    thread.join()
    assert (result.waited, result.exit_code, [b.status for b in result.batches]) == ("SENT", 0, ["SENT"])


def test_waiting_ends_with_a_failure_and_with_the_time(settings: Settings, database: engine.Database) -> None:
    world = World(settings, database)
    world.arrive(file("1"))
    assert status.wait(settings, "1.2.3", timeout=0).exit_code == 3
    done = cli("status", "--study", "1.2.3", "--wait", "--timeout", "0", url=settings.database_url)
    assert done.returncode == 3
    execute(
        database,
        "UPDATE exam_batches SET status = 'FAILED', ready_at = now(), finished_at = now(), failure_code = 'X', failure = 'x'",
    )
    assert status.wait(settings, "1.2.3", timeout=0).exit_code == 1
    assert cli("status", "--study", "1.2.99", "--wait", url=settings.database_url).returncode == 2
    assert cli("status", "--wait", url=settings.database_url).returncode == 2

"""Run the chain on two hosts with random faults, then let it finish, and check that nothing is lost and nothing false is said.

    python -m bench.soak --minutes 60

Needs root (namespaces), DCMTK, Orthanc and Debian's PostgreSQL. Everything stays in network namespaces that it makes, and is
gone at the end. It prints what happened, and ends with 1 if something does not hold.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from bench.common import keep
from bench.soak import hosts
from bench.soak.chain import Chain
from bench.soak.faults import Faults, World, wait_for
from bench.soak.modality import Modality
from bench.soak.parts import Orthanc, Postgres, Receiver
from bench.soak.verdict import AUDIT, Archive, Store, Verdict

LEASE = 20.0
BACK_OFF = 15.0

ROUTES = {
    "ct": ("steady", "orthanc"),
    "mr": ("shaky", "outside"),
    "us": ("steady", "converted", "dead"),
}
"""The destinations of each drop directory. What is in ``us`` is put aside and removed from there."""

_LISTEN_PORT = 11199

SECRET = "s3cret-of-the-soak"


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="how long things break")
    parser.add_argument("--studies", type=int, default=2200, help="studies that are written, at most")
    parser.add_argument(
        "--kill-every", type=float, default=4.0, metavar="SECONDS", help="pause between kills, on average"
    )
    parser.add_argument(
        "--fault-every", type=float, default=6.0, metavar="SECONDS", help="pause between other faults, on average"
    )
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--keep", action="store_true", help="write the figures to bench/soak.json")
    given = parser.parse_args()
    # Ended by somebody, it takes its processes and namespaces with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    place = Path(tempfile.mkdtemp(prefix="examsend-soak-", dir="/var/tmp"))
    place.chmod(0o755)
    if Soak(place, given).run():
        print(f"what is there of database, receivers and logs is kept in {place}")
        sys.exit(1)
    shutil.rmtree(place)


class Soak:
    """One run."""

    def __init__(self, place: Path, given: argparse.Namespace) -> None:
        self._place = place
        self._given = given
        self._logs = place / "logs"
        self._logs.mkdir()

    def run(self) -> int:
        """Run it; return the number of things that do not hold."""
        database_place = self._place / "database"
        database_place.mkdir()
        with hosts.network(("anna", "boris"), self._place) as (hub, clients):
            export = self._place / "export"
            # Not on the disk that fills up: DCMTK 3.6.7's storescp answers Success there, and keeps an empty file.
            stores = self._place / "receivers"
            database = Postgres(hub, database_place)
            receivers = [
                Receiver(hub, stores, name, 11112 + n)
                for n, name in enumerate(("steady", "shaky", "outside", "converted", "dead"))
            ]
            receivers.append(Orthanc(hub, stores, "orthanc", 11120))
            try:
                return self._with(hub, clients, database, receivers, export)
            finally:
                for receiver in receivers:
                    receiver.end()
                database.stop()

    def _with(
        self,
        hub: hosts.Host,
        clients: list[hosts.Client],
        database: Postgres,
        receivers: list[Receiver],
        export: Path,
    ) -> int:
        share = self._place / "share"
        for drop in ROUTES:
            (export / drop).mkdir()
        scratch = self._place / "modality"
        scratch.mkdir()
        kept = {k: v for k, v in os.environ.items() if not k.startswith("EXAMSEND_") and k != "PYTHONDONTWRITEBYTECODE"}
        chain = Chain(
            {
                **kept,
                "PYTHONPATH": str(Path(__file__).parents[2]),
                "EXAMSEND_DATABASE_URL": database.url.replace("postgres@", f"postgres:{SECRET}@"),
                "EXAMSEND_SPOOL_DIRECTORY": str(share / "spool"),
                "EXAMSEND_KEEP_FREE": "2 MB",
                "EXAMSEND_LEASE": str(LEASE),
                "EXAMSEND_SETTLE": "1",
                "EXAMSEND_INCOMPLETE_AFTER": "20",
                "EXAMSEND_DATABASE_WAIT": "5",
            },
            self._logs,
            self._given.seed,
        )
        anna, boris = clients
        self._set_up(chain, anna, database, receivers)
        world = World(hub, clients, database, [r for r in receivers if r.name != "dead"], chain, export, LEASE)
        faults = Faults(
            world, self._given.seed + 1, kill_every=self._given.kill_every, fault_every=self._given.fault_every
        )
        seconds = self._given.minutes * 60
        modality = Modality(
            [export / d for d in ROUTES],
            scratch,
            seconds * 0.95 / self._given.studies,
            self._given.studies,
            self._given.seed,
            boris.inside(sys.executable, "-m", "bench.soak.steps", anna.address, str(_LISTEN_PORT)),
        )
        began = time.monotonic()
        for client in clients:
            for drop, names in ROUTES.items():
                to = [word for name in names for word in ("--to", name)]
                aside = ["--spool", "copy", "--remove"] if drop == "us" else []
                chain.loop(client, ["ingest", "-q", str(share / drop), *to, *aside], 3)
            # The clock of one of the hosts is a day ahead of the database's.
            skew = 86400.0 if client is boris else 0.0
            chain.loop(client, ["finalize", "-q"], 2, skew)
            for _ in range(2):
                chain.loop(client, ["send", "-q", "--max-runtime", "60"], 1, skew)
        chain.loop(anna, ["listen", "-q", "--port", str(_LISTEN_PORT)], 1)
        chain.loop(anna, ["status", "--json"], 10)
        chain.loop(boris, ["metrics"], 10)
        chain.loop(boris, ["prune", "-q", "--older-than", "1d"], 30)
        modality.start()
        faults.start()
        try:
            wait_for(lambda: self._said(began, modality, faults, chain) and modality.done, seconds)
        finally:
            faults.stop()
            fault_seconds = time.monotonic() - began
            modality.stop()
        print(f"faults are over after {fault_seconds:.0f} s; it finishes alone", flush=True)
        verdict = Verdict(database.local, modality.written, ROUTES, {share: export})
        dead = list(verdict.no_attempt_used("dead"))
        next(r for r in receivers if r.name == "dead").start()
        bound = LEASE + BACK_OFF + 600
        drained = wait_for(lambda: self._is_drained(verdict), bound)
        chain.stop()
        return self._judge(verdict, receivers, chain, faults, modality, database, dead, drained, fault_seconds)

    def _set_up(self, chain: Chain, client: hosts.Client, database: Postgres, receivers: list[Receiver]) -> None:
        assert chain.once(client, ("db", "upgrade")) == 0
        options = {
            "outside": ("--sender", "dcmtk"),
            "shaky": ("--sender", "pynetdicom"),
            "converted": ("--no-default",),
        }
        for receiver in receivers:
            words = (
                *("destination", "add", receiver.name, receiver.address, "--quiet-period", "3", "--backoff", "1"),
                *(
                    "--backoff-max",
                    str(BACK_OFF),
                    "--max-attempts",
                    "50",
                    "--connect-timeout",
                    "3",
                    "--accept-timeout",
                    "5",
                ),
                *("--answer-timeout", "8", "--stall-timeout", "8", *options.get(receiver.name, ())),
            )
            assert chain.once(client, words) == 0, f"{receiver.name}: see {self._logs}"
            if receiver.name == "converted":
                receiver.start("+xi")  # Implicit VR Little Endian only: what is sent to it is re-encoded
            elif receiver.name != "dead":
                receiver.start()
        import psycopg2

        with psycopg2.connect(database.local) as connection, connection.cursor() as cursor:
            cursor.execute(AUDIT)
        connection.close()

    def _said(self, began: float, modality: Modality, faults: Faults, chain: Chain) -> bool:
        """Print a line a minute. True."""
        minute = int((time.monotonic() - began) / 60)
        if minute != getattr(self, "_minute", -1):
            self._minute = minute
            kills = sum(n for what, n in faults.count.items() if what.startswith("SIGKILL"))
            print(
                f"{minute} min: {modality.written.studies} studies, {kills} SIGKILLs,"
                f" {sum(faults.count.values()) - kills} other faults, {sum(chain.tally.runs.values())} commands",
                flush=True,
            )
        return True

    @staticmethod
    def _is_drained(verdict: Verdict) -> bool:
        unsent = verdict.rows("SELECT count(*) FROM exam_batches WHERE status NOT IN ('SENT', 'FAILED')")[0][0]
        missing = next(verdict.nothing_vanished(), None)
        return unsent == 0 and missing is None

    def _judge(
        self,
        verdict: Verdict,
        receivers: list[Receiver],
        chain: Chain,
        faults: Faults,
        modality: Modality,
        database: Postgres,
        dead: list[str],
        drained: float | None,
        fault_seconds: float,
    ) -> int:
        stores: dict[str, Store] = {
            r.name: Archive(r.stored) if r.name in {"orthanc", "converted"} else Store(r.stored) for r in receivers
        }
        said = " ".join(path.read_text(errors="replace") for path in self._logs.iterdir())
        findings = {
            "1 every file is an instance, or rejected": list(verdict.nothing_vanished()),
            "2 what is SENT is in the receiver's store": list(verdict.sent_is_true(stores)),
            "3 one live attempt at most, no write without a claim": list(verdict.one_attempt_at_a_time()),
            "4 everything ends SENT or FAILED": list(verdict.all_ended()),
            "5 a destination that is away uses up no attempts": dead,
            "7 exit codes, no secret, no name": [
                *chain.tally.unexpected,
                *(["the password is in a log"] if SECRET in said else []),
                *(["a patient's name is in a log"] if re.search(r"SAMPLE\^|Demo\^", said) else []),
            ],
        }
        states = verdict.rows("SELECT status, count(*) FROM exam_batches GROUP BY status")
        failed = verdict.rows("SELECT failure_code, count(*) FROM exam_batches WHERE status = 'FAILED' GROUP BY 1")
        kills = dict(sorted(faults.count.items()))
        sigkills = sum(n for what, n in kills.items() if what.startswith("SIGKILL"))
        lost = verdict.rows("SELECT count(*) FROM send_attempts WHERE result = 'LEASE_LOST'")[0][0]
        again = sum(store.again for store in stores.values())
        figures = {
            "seed": self._given.seed,
            "minutes": round(fault_seconds / 60, 1),
            "studies": modality.written.studies,
            "instances": modality.written.instances,
            "steps by MPPS": len(modality.written.steps),
            "cut short": modality.written.broken,
            "commands": sum(chain.tally.runs.values()),
            "faults": kills,
            "SIGKILLs": sigkills,
            "database crashes": database.crashes,
            "batches": {str(k): v for k, v in states},
            "failed": {str(k): v for k, v in failed},
            "attempts lost": lost,
            "instances stored again": again,
            "again per SIGKILL of send": round(again / max(1, kills.get("SIGKILL send", 0)), 2),
            "seconds to drain": None if drained is None else round(drained),
            "broken": {name: len(found) for name, found in findings.items()},
        }
        for name, value in figures.items():
            print(f"{name:28} {value}")
        for name, found in findings.items():
            print(f"{'holds ' if not found else 'BROKEN'}  {name}")
            for sentence in found[:20]:
                print(f"        {sentence}")
        for error in faults.errors[:10]:
            print(f"a fault could not be made: {error}")
        if self._given.keep:
            keep("soak", figures)
        verdict.close()
        return sum(len(found) for found in findings.values())


if __name__ == "__main__":
    main()

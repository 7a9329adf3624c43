"""Makes the pictures of monitoring/README.md from a real run: python monitoring/pictures.py [SECONDS]

Studies go to a receiver, to one that refuses some instances and to a port where nobody listens, for SECONDS (150). A Prometheus on
loopback reads what ``examsend metrics`` says, each 2 seconds, with the rules of this folder. The dashboard's panels are drawn by
matplotlib from what Prometheus answers to the dashboard's own expressions; the page of alerts is Prometheus's, seen by chromium.

Needs prometheus and chromium (Debian), matplotlib (pip), examsend with its tests and the embedded PostgreSQL.
"""

# ruff: noqa: T201, DTZ006
from __future__ import annotations

import http.server
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.dates
import matplotlib.pyplot as plt
from PIL import Image

from examsend.commands import destination, finalize, ingest, metrics, send
from examsend.config.settings import Settings
from examsend.db import access, embedded, migrate, passes
from examsend.demo import samples
from tests.peers.dcmtk import free_port
from tests.peers.scripted import Script, scripted

HERE = Path(__file__).parent
EVERY = 2


def main(seconds: float) -> None:
    """Run it all."""
    with tempfile.TemporaryDirectory() as scratch_name, embedded.scratch_directory() as place:
        scratch = Path(scratch_name)
        with embedded.running(place, unsafe_fast=True) as url:
            settings = Settings(database_url=url, settle=0, incomplete_after=0, record_seconds=0.1)
            with access.opened(settings, check=False) as database:
                migrate.upgrade(database)
            watched = _serve(settings)
            port = free_port()
            prometheus = _prometheus(scratch, watched, port)
            try:
                began = time.time()
                _hospital(settings, scratch, seconds)
                _wait_for_scrape()
                _draw(port, began, time.time())
                _alerts(port)
            finally:
                prometheus.terminate()
                prometheus.wait(20)


def _serve(settings: Settings) -> int:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = metrics.run(settings).text.encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_address[1]


def _prometheus(scratch: Path, watched: int, port: int) -> subprocess.Popen[bytes]:
    config = {
        "global": {"scrape_interval": f"{EVERY}s", "evaluation_interval": f"{EVERY}s"},
        "rule_files": ["examsend.rules.yml"],
        "scrape_configs": [{"job_name": "examsend", "static_configs": [{"targets": [f"127.0.0.1:{watched}"]}]}],
    }
    shutil.copy(HERE / "examsend.rules.yml", scratch)
    (scratch / "prometheus.yml").write_text(json.dumps(config))
    return subprocess.Popen(
        [
            "prometheus",
            "--config.file=prometheus.yml",
            f"--storage.tsdb.path={scratch / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=warn",
        ],
        cwd=scratch,
    )


def _wait_for_scrape() -> None:
    time.sleep(3 * EVERY)


def _hospital(settings: Settings, scratch: Path, seconds: float) -> None:
    """Deliver studies until the time is over; some instances are refused, a port is dead, a file is cut short."""
    drop = scratch / "drop"
    values = {"backoff_seconds": 3.0, "backoff_max_seconds": 5.0}
    odd = Script(status=lambda k, _u: 0xB000 if k % 7 == 3 else 0xA700 if k % 41 == 5 else 0, delay=0.03)
    with scripted(Script(delay=0.01)) as pacs, scripted(odd) as research:
        destination.add(settings, "pacs", pacs.address, {"quiet_seconds": 2.0, **values})
        destination.add(settings, "research", research.address, {"quiet_seconds": 4.0, **values})
        destination.add(settings, "oncology", f"ONCO@127.0.0.1:{free_port()}", {"quiet_seconds": 2.0, **values})
        over = time.monotonic() + seconds
        number = 0
        while time.monotonic() < over:
            number += 1
            made = samples.ct_study(drop / str(number), 3 + number * 7 % 17, size=16)
            if number == 4:
                made[0].write_bytes(made[0].read_bytes()[:-30])
            _pass(settings, "ingest", lambda: ingest.run(settings, [drop]))
            _pass(settings, "finalize", lambda: finalize.run(settings))
            _pass(settings, "send", lambda: send.run(settings, max_runtime=3))
            time.sleep(0.5)


def _pass(settings: Settings, command: str, run: Callable[[], object]) -> None:
    """Run a pass, and record it as the command line does."""
    began = time.monotonic()
    result = run()
    code = int(getattr(result, "exit_code", getattr(result, "needs_person", 0)))
    assert settings.database_url is not None
    passes.record_at(settings.database_url, passes.Pass(command, "pacs-gateway", time.monotonic() - began, code))


def _ask(port: int, path: str, **values: object) -> list[dict[str, object]]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(values)}") as answer:
        return json.load(answer)["data"]["result"]


def _draw(port: int, began: float, ended: float) -> None:
    """Draw the dashboard's panels at their places."""
    board = json.loads((HERE / "dashboard.json").read_text())
    rows = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in board["panels"])
    plt.rcParams.update({"font.size": 6, "axes.titlesize": 7, "axes.titleweight": "bold", "axes.titlelocation": "left"})
    figure = plt.figure(figsize=(13, rows * 0.24), facecolor="white")
    unit = 1 / rows
    for panel in board["panels"]:
        at = panel["gridPos"]
        top = 1 - at["y"] * unit
        if panel["type"] == "row":
            figure.text(0.01, top - 0.7 * unit, panel["title"], fontsize=9, fontweight="bold", color="#444444")
            continue
        low = 0.2 * at["h"]
        box = (at["x"] / 24 + 0.03, top - (at["h"] - low) * unit, at["w"] / 24 - 0.04, (at["h"] - low - 1.3) * unit)
        axes = figure.add_axes(box)
        axes.set_title(panel["title"])
        (_stat if panel["type"] == "stat" else _lines)(axes, port, panel, began, ended)
    figure.savefig(HERE / "dashboard.png", dpi=90)
    _fewer_colors(HERE / "dashboard.png")
    print("dashboard.png")


def _fewer_colors(path: Path) -> None:
    with Image.open(path) as image:
        image.convert("RGB").quantize(64).save(path, optimize=True)


def _expression(text: str) -> str:
    return text.replace("$__rate_interval", "30s").replace("$destination", ".*")


def _legend(pattern: str, labels: dict[str, str]) -> str:
    for name, value in labels.items():
        pattern = pattern.replace(f"{{{{{name}}}}}", value)
    return pattern


def _lines(axes: plt.Axes, port: int, panel: dict[str, object], began: float, ended: float) -> None:
    for target in panel["targets"]:
        step = max((ended - began) / 120, 1)
        found = _ask(port, "query_range", query=_expression(target["expr"]), start=began, end=ended, step=step)
        for one in found:
            times = [datetime.fromtimestamp(float(t)) for t, _ in one["values"]]
            numbers = [float(v) for _, v in one["values"]]
            axes.plot(times, numbers, linewidth=0.9, label=_legend(target["legendFormat"], one["metric"]))
    axes.grid(visible=True, linewidth=0.2)
    axes.set_ylim(bottom=0)
    if panel["fieldConfig"]["defaults"]["unit"] == "percentunit":
        axes.set_ylim(-0.05, 1.05)
    axes.set_ylabel(
        {"s": "seconds", "Bps": "bytes/s", "ops": "a second"}.get(panel["fieldConfig"]["defaults"]["unit"], "")
    )
    axes.xaxis.set_major_formatter(matplotlib.dates.DateFormatter("%H:%M:%S"))
    axes.xaxis.set_major_locator(matplotlib.dates.AutoDateLocator(maxticks=4))
    if axes.lines:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncol=3, frameon=False, fontsize=5)


def _stat(axes: plt.Axes, port: int, panel: dict[str, object], _began: float, _ended: float) -> None:
    axes.axis("off")
    shown = [
        (_legend(t["legendFormat"], one["metric"]), float(one["value"][1]))
        for t in panel["targets"]
        for one in _ask(port, "query", query=_expression(t["expr"]))
    ]
    defaults = panel["fieldConfig"]["defaults"]
    words = {k: v["text"] for m in defaults.get("mappings", ()) for k, v in m["options"].items()}
    for n, (name, value) in enumerate(shown):
        steps = [s["color"] for s in defaults["thresholds"]["steps"] if s["value"] is None or value >= s["value"]]
        color = {"green": "#56a64b", "red": "#e02f44", "orange": "#ff780a"}[steps[-1]]
        height = 1 / len(shown)
        axes.add_patch(
            plt.Rectangle((0, 1 - (n + 1) * height), 1, height * 0.92, color=color, transform=axes.transAxes)
        )
        place = 1 - (n + 0.5) * height
        axes.text(0.03, place, name, color="white", va="center", transform=axes.transAxes)
        text = words.get(f"{value:g}", f"{value:g}")
        axes.text(
            0.97, place, text, color="white", va="center", ha="right", fontweight="bold", transform=axes.transAxes
        )


def _alerts(port: int) -> None:
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                "chromium",
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                f"--user-data-dir={profile}",
                "--window-size=1000,960",
                "--virtual-time-budget=8000",
                f"--screenshot={HERE / 'alerts.png'}",
                f"http://127.0.0.1:{port}/classic/alerts",
            ],
            check=False,
            timeout=90,
            stderr=subprocess.DEVNULL,
        )
    print("alerts.png")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 150)

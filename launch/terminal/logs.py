"""Logs of a server: one event a line on standard error, as text or as JSON."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from datetime import UTC, datetime

TEXT = "%(asctime)s %(levelname)s %(message)s"


class JsonFormatter(logging.Formatter):
    """One JSON object a record, of one schema: time (UTC), level, event, server, and the event's facts. What is no event of
    this project (a package's warning) is the event "message", with the facts logger and message.

    server: who writes what says no server.
    """

    def __init__(self, server: str = "") -> None:
        super().__init__()
        self._server = server

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", "message"),
            "server": getattr(record, "server", self._server),
        }
        if hasattr(record, "event"):
            line |= getattr(record, "facts", {})
        else:
            line |= {"logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure(format: str, level: str, server: str = "") -> None:
    """Log to standard error from now on. format: text or json. level: of this project; of other packages, warnings. server:
    this process's name.

    Python's own warnings become events too. One of them says nothing here: a session that a lost peer ends drops protocols
    that had not begun, of which Python says that they were never awaited.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(server) if format == "json" else logging.Formatter(TEXT))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("mpcache").setLevel(level.upper())
    logging.captureWarnings(True)
    warnings.filterwarnings("ignore", r"coroutine '.*' was never awaited", RuntimeWarning)

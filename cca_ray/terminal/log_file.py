"""What libraries have to say while a study runs goes to a file, nothing of it to the terminal."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cca_ray.errors import without_secrets
from cca_ray.storage.mirror import pull, push

LOG_FILE = "log.txt"  # in a study's folder
OURS = logging.getLogger("cca_ray")  # what the terminal is told, is told to the file too
FORM = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class Form(logging.Formatter):
    """Records and tracebacks without the passwords of URIs."""

    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))


class LogFile(logging.FileHandler):
    """Where it cannot be written, as on a full disk, it is silent: that is for those to tell who need the disk."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        pass

    def close(self) -> None:
        with suppress(OSError):
            super().close()


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Append all that goes through Python's logging, and its warnings, to a file; in the end also at its URI.

    An exception that passes is written there with its traceback, and takes along a note that names the file.
    """
    pull(path)  # what runs on other machines wrote
    handler = LogFile(path, encoding="utf-8")
    handler.setFormatter(Form(FORM))
    root, level = logging.getLogger(), OURS.level
    taken = take_from_terminal()
    root.addHandler(handler)
    OURS.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    except Exception as error:
        OURS.exception("the study ends here")
        error.add_note(f"log: {path}")
        raise
    finally:
        logging.captureWarnings(False)
        OURS.setLevel(level)
        root.removeHandler(handler)
        handler.close()
        for logger, handlers, propagate in taken:
            logger.handlers, logger.propagate = handlers, propagate
        with suppress(OSError):  # as of a full disk
            push(path)


def take_from_terminal() -> list[tuple[logging.Logger, list[logging.Handler], bool]]:
    """Take the libraries' handlers that write to the terminal away, so that all goes to the root's; how they were."""
    taken = []
    for logger in list(logging.root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger) and any(map(to_terminal, logger.handlers)):
            taken.append((logger, logger.handlers, logger.propagate))
            logger.handlers = [handler for handler in logger.handlers if not to_terminal(handler)]
            logger.propagate = True
    return taken


def to_terminal(handler: logging.Handler) -> bool:
    return isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler)

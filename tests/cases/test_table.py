"""The table in README.md names tests that there are."""

import re
from pathlib import Path

HERE = Path(__file__).parent


def test_every_test_that_the_table_names_is_there():
    file, missing = "", []
    for path, name in re.findall(r"`(…|[\w/]+\.py)(?:::(\w+)…?)?`", (HERE / "README.md").read_text()):
        file = file if path == "…" else path
        places = [folder / file for folder in (HERE, HERE.parent) if (folder / file).is_file()]
        if not places or (name and not re.search(rf"def {name}", places[0].read_text())):
            missing.append(f"{file}::{name}")
    assert missing == []

"""What a person may see of an error."""

import pytest

from cca_ray.errors import first_line, without_secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:pw@host:5000/x", "http://user:***@host:5000/x"),
        (
            "postgresql+psycopg2://u:p%40ss@h/db?x=1 and mysql://a:b@c",
            "postgresql+psycopg2://u:***@h/db?x=1 and mysql://a:***@c",
        ),
        ("http://:token@host", "http://:***@host"),
        ("at http://token@host:5000", "at http://***@host:5000"),
        ("http://user:p/w@rd@host/x", "http://user:***@host/x"),
        ("mysql://host/db?user=u&pass%77ord=pw&x=1", "mysql://host/db?user=u&pass%77ord=***&x=1"),
        ("s3://bucket/a:b@c", "s3://bucket/a:b@c"),
        ("sqlite:////a/b.db, 12:30 me@home", "sqlite:////a/b.db, 12:30 me@home"),
    ],
)
def test_passwords_of_uris_are_hidden(text: str, shown: str):
    assert without_secrets(text) == shown


def test_the_first_line_of_an_error_is_there_even_if_it_says_nothing():
    assert first_line(OSError("full\nsee the manual")) == "full"
    assert first_line(OSError()) == "OSError"

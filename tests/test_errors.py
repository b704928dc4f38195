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
        ("at http://user@host:5000", "at http://user@host:5000"),
        ("s3://bucket/a:b@c", "s3://bucket/a:b@c"),
        ("abfs://f@a/x?se=2030&sig=a%2Fb%3D&sv=1 is", "abfs://f@a/x?se=2030&sig=***&sv=1 is"),
        ("https://b/x?X-Amz-Signature=0a&X-Amz-Date=1", "https://b/x?X-Amz-Signature=***&X-Amz-Date=1"),
        ("'s3://b/x?access_key=AK&secret_key=hidden'", "'s3://b/x?access_key=***&secret_key=***'"),
        ("s3://b/x?region=design&scheme=http", "s3://b/x?region=design&scheme=http"),
        ("sqlite:////a/b.db, 12:30 me@home", "sqlite:////a/b.db, 12:30 me@home"),
    ],
)
def test_passwords_of_uris_are_hidden(text: str, shown: str):
    assert without_secrets(text) == shown


def test_the_first_line_of_an_error_is_there_even_if_it_says_nothing():
    assert first_line(OSError("full\nsee the manual")) == "full"
    assert first_line(OSError()) == "OSError"

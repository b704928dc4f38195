"""URIs shown: whatever the credentials are, and wherever the URI stands in a text, they are not in it."""

from urllib.parse import quote, urlencode

from hypothesis import assume, given
from hypothesis import strategies as st

from cca_ray.errors import without_secrets

SECRETS = st.text(st.characters(exclude_categories=["Z", "C"]), min_size=1, max_size=12).map(lambda t: f"Ge{t}heim")
SCHEMES = st.sampled_from(["http", "https", "postgresql", "postgresql+psycopg2", "mysql", "s3", "mssql+pyodbc"])
USERS = st.sampled_from(["", "user", "a.b", "me%40home"])
REST = st.sampled_from(["", "/", ":5000", ":5000/x", "/db?x=1", "/db?x=1&y=a@b", "/a:b@c"])
AROUND = st.text(max_size=10).map(lambda text: f"{text} ") | st.sampled_from(["", "(", "'", "at ", "a://b "])


def encoded(secret: str, how: int) -> str:
    """As people write it: as it is, or with some letters escaped."""
    return [secret, quote(secret, safe=""), quote(secret)][how]


@given(SCHEMES, USERS, SECRETS, st.integers(0, 2), REST, AROUND, AROUND)
def test_a_password_is_never_shown(scheme: str, user: str, secret: str, how: int, rest: str, before: str, after: str):
    password = encoded(secret, how)
    assume("Ge" not in before + after and "heim" not in before + after)
    shown = without_secrets(f"{before}{scheme}://{user}:{password}@host{rest} {after}")
    assert "Ge" not in shown
    assert "heim" not in shown
    assert f"{scheme}://{user}:***@" in shown
    assert shown.startswith(before)


@given(SCHEMES, SECRETS, REST)
def test_a_token_in_place_of_a_user_is_never_shown(scheme: str, secret: str, rest: str):
    shown = without_secrets(f"at {scheme}://{quote(secret, safe='')}@host{rest}")
    assert "heim" not in shown
    assert shown.startswith(f"at {scheme}://***@")


NAMES = st.sampled_from(["password", "Passwd", "sslpassword", "token", "secret_key", "access_key", "api-key", "PWD",
                         "X-Amz-Signature", "X-Amz-Credential", "auth"])  # fmt: skip


@given(SCHEMES, NAMES, SECRETS, st.booleans(), st.sampled_from(["", "x=1&", "user=me&"]))
def test_a_secret_in_a_query_is_never_shown(scheme: str, name: str, secret: str, escaped: bool, first: str):
    name = "".join(f"%{ord(letter):02X}" for letter in name) if escaped else name
    shown = without_secrets(f"{scheme}://host/db?{first}{name}={quote(secret)}&y=2")
    assert shown == f"{scheme}://host/db?{first}{name}=***&y=2"
    assert "heim" not in without_secrets(f"{scheme}://host/db?{urlencode({'token': secret})}")


@given(st.text())
def test_what_is_shown_is_shown_again_as_it_is(text: str):
    shown = without_secrets(text)
    assert without_secrets(shown) == shown


@given(st.lists(st.text(st.characters(exclude_characters="@?&", exclude_categories=["Cs"])), max_size=4))
def test_a_text_without_credentials_stays(parts: list[str]):
    assert without_secrets("://".join(parts)) == "://".join(parts)

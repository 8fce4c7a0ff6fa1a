"""No credential of a url is left in what is shown or stored, and the text around it can still be read."""

from __future__ import annotations

import random
import re

import pytest

from glci_dist.urls import hides_secrets, same_url, without_secrets, without_secrets_in

SIGNS = "/:@?#&;=%+$!*'\"~.,()[]{}<>|\\ -_"
AROUND = (
    "{0}",
    "cannot read {0}: it is not there",
    "{0!r} is refused; give another",
    '"{0}", and then',
    "(see {0}).",
    "<a href='{0}'>here</a> it is",
    "data.shards={0} data.val={1} name=first",
    "[{0!r}, {1!r}]",
    '{{"shards": "{0}", "val": "{1}"}}',
    "{0}: moved to {1}; try again\nand look at {0}",
    "ClientError(url=URL('{0}')) in {1}, at last",
)


def secret(draw: random.Random, *, without: str = "") -> str:
    """A word with signs within it that no other text has; sometimes all that surrounds its core is digits."""
    signs = [sign for sign in SIGNS if sign not in without]
    core = "".join(draw.choices("QXZ", k=8))
    before = "".join(draw.choices(draw.choice(["0123456789", "uvw09", "uvw", ""]) or " ", k=draw.randint(1, 4))).strip()
    return before + "".join(draw.choices(signs, k=draw.randint(0, 3))) + core


def url(draw: random.Random) -> tuple[str, list[str]]:
    """A url and the credentials in it."""
    secrets = []
    text = draw.choice(["http://", "https://", "HTTPS://", "s3://", "socks5://", "http:/", "http:"])
    if draw.random() < 0.6:
        user = draw.choice(["me", "me@corp.com", "corp/me", "", "DOM\\me"])
        secrets.append(secret(draw, without=" " if "/" in user else ""))
        text += f"{user}:{secrets[-1]}@"
    text += draw.choice(["host", "host:8000", "[::1]:80", "h.example.org"]) + draw.choice(["", "/", "/a/o'b.tar", "/x"])
    # Without a name it may be that of an object in S3.
    some = ["v=1", "sig=", "X-Token=", "download", "a_b=", *([""] if text[:2] != "s3" else [])]
    names = draw.sample(some, k=draw.randint(0, 4))
    sign = draw.choice("?#")
    for name in names:
        if name in ("v=1", "download"):
            text += f"{sign}{name}"
        else:
            # What would begin the next parameter is no part of one, and a space ends a url.
            secrets.append(secret(draw, without="&;?# " if name else "&;?# ="))
            text += f"{sign}{name}{secrets[-1]}"
        sign = draw.choice("&;&#")
    return text, secrets


def core(word: str) -> str:
    return word[-8:]


@pytest.mark.parametrize("seed", range(20))
def test_no_credential_survives_in_any_sentence(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(60):
        (one, first), (other, second) = url(draw), url(draw)
        for sentence in AROUND:
            shown = without_secrets(sentence.format(one, other))
            left = [word for word in (*first, *second) if core(word) in shown]
            assert not left, (left, sentence, one, other, shown)
            assert without_secrets(shown) == shown
            assert all(words in shown for words in re.findall(r"[a-z]+ [a-z ]*[a-z]", sentence)), (sentence, shown)
        if "@***" not in without_secrets(one):
            # Else an @ may stand in its query or end a password: whoever reads a location refuses that.
            assert same_url(without_secrets(one)) == same_url(one)
        assert hides_secrets(without_secrets(one)) == bool(first)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://u:1234/w@h/x", "http://***@h/x"),
        ("http://u:my secret@h/x", "http://***@h/x"),
        ("http://me@corp.com:se/cret@h/x", "http://***@h/x"),
        ("http:/u:secret@h/x is not a whole url", "http:/***@h/x is not a whole url"),
        ("s3://key:se/cret@bucket/x", "s3://***@bucket/x"),
        ("https://h/x#access_token=zz", "https://h/x#access_token=***"),
        ("https://h/x?v=1;sig=abc", "https://h/x?v=1;sig=***"),
        ("https://h/x?sig=a'b\"c", "https://h/x?sig=***"),
        ("https://h/x?c2VjcmV0==", "https://h/x?***"),
        ("http://h/o'brien?sig=abc", "http://h/o'brien?sig=***"),
    ],
)
def test_credentials_that_are_not_written_as_they_should_be_are_hidden(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "http://host:8000: no such file; see ~/.netrc",
        "'http://host:8000/x' and 'https://host/y', http://[::1]:80/z (all of them): refused!",
        "https://unpkg.com/react@18/x; http://h/a:b",
        "is it https://h/x?",
        "https://h/x?version=3&dl=1, say",
        "file:///data/a?b=1#c:d@e, or file:///x",
        "s3://bucket/a#b/what?",
        "the time is 12:30, mail me@host; --signal=USR2@120; http: no",
        'http://127.0.0.1:9/index.json cannot be read: ClientError: "Cannot connect to host 127.0.0.1:9"',
    ],
)
def test_text_without_credentials_stays_as_it_is(text: str) -> None:
    assert without_secrets(text) == text


def test_what_stands_around_a_credential_stays() -> None:
    text = "'https://h/x?sig=abc', then (http://u:p@h/y): see \"http://h:80/z?token=t\"; and http://h/w."
    shown = "'https://h/x?sig=***', then (http://***@h/y): see \"http://h:80/z?token=***\"; and http://h/w."
    assert without_secrets(text) == shown
    assert without_secrets_in({"a": ["http://u:p@h", 1, None]}) == {"a": ["http://***@h", 1, None]}

"""Servers that mean harm, addresses and keys that are none: one harmless line, and the key stays here."""

import base64
import json
import shutil
import ssl
import subprocess
from urllib.parse import quote

import pytest
from click.testing import CliRunner
from raw import http, raw, slowly

from rsd.cli import main
from rsd.models.bundled import bundled
from rsd.serving import client as served
from rsd.serving import probe
from rsd.serving.key import KEY

SECRET = 'sk-"tell/nobody\\+of&this=key'


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    monkeypatch.setattr(served, "DELAYS", (0.02, 0.2))
    monkeypatch.setattr(served, "WHOLE", 3.0)
    monkeypatch.setattr(probe, "STARTING", 0)
    monkeypatch.delenv(KEY, raising=False)
    for name in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name.upper()}_PROXY", raising=False)


def refused(tmp_path, *urls: str) -> str:
    """The one line that a command ends with."""
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "What is 1 + 1?"}\n', encoding="utf-8")
    teachers = [f"--teacher={url}" for url in urls]
    flags = ["--teacher-model=teacher", f"--teacher-tokenizer={bundled('teacher')}", "-o", str(tmp_path / "t.jsonl")]
    result = CliRunner().invoke(main, ["generate", str(source), *teachers, *flags])
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit), result.output
    assert len(result.output.splitlines()) == 1 and len(result.output) < 700
    assert all(c.isprintable() for c in result.output.rstrip("\n"))
    assert not (tmp_path / "t.jsonl").exists()
    return result.output


def listing(length: str) -> str:
    return '{"data": [{"id": "teacher", "max_model_len": ' + length + "}]}"


ANSWERS = {
    "nothing": b"",
    "no http": b"\x1b[2Jhello\r\n\r\n",
    "no json": http("<html>"),
    "no utf-8": http(b"\xff\xfe{"),
    "a list": http("[]"),
    "a number": http("5"),
    "no data": http("{}"),
    "data that is a number": http('{"data": 5}'),
    "models that are numbers": http('{"data": [5]}'),
    "a model without a name": http('{"data": [{}]}'),
    "no models": http('{"data": []}'),
    "nested deeply": http("[" * 200_000),
    "gzip that is none": http(b"\x1f\x8b no", "200 OK", "Content-Encoding: gzip"),
    "a coding that nobody knows": http("{}", "200 OK", "Transfer-Encoding: gzip"),
    "chunks that are none": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "two lengths": http("{}", "200 OK", "Content-Length: 7"),
    "a length that is none": b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{}",
    "a huge length": b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n{}",
    "headers without end": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000,
    "a status that is none": http("{}", "999999 \x1b[31mred"),
    "an error that is a list": http('{"error": [1, {"message": "\\u001b[31m"}]}', "400 Bad Request"),
    "an error in many lines": http(json.dumps({"error": {"message": "a\nrsd: b\r\x1b]0;x\x07\u202e" * 99}}), "400 No"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_any_answer_ends_in_one_line(tmp_path, name):
    with raw(lambda _: ANSWERS[name]) as one:
        assert one.url in refused(tmp_path, f"{one.url}/v1")


@pytest.mark.parametrize(
    "length", ["Infinity", "-Infinity", "NaN", "1e999", "-5", "0", "1", "2.5", "true", '"many"', "[]", "{}"]
)
def test_a_length_that_is_none(tmp_path, length):
    with raw(lambda _: http(listing(length))) as one:
        assert "max_model_len" in refused(tmp_path, f"{one.url}/v1")


@pytest.mark.parametrize("value", ["NaN", "-NaN", "null", '"x"', "[]", "1" + "0" * 400, "1e999", "3.5", "1" * 5000])
def test_a_log_prob_that_is_none(tmp_path, value):
    top = ", ".join(f'"token_id:{i}": {value if i == 7 else -1.0}' for i in range(20))
    choice = '{"index": 0, "logprobs": {"tokens": ["token_id:1"], "top_logprobs": [{' + top + "}]}}"

    def answer(head):
        return http(listing("512")) if b"/models" in head else http('{"choices": [' + choice + "]}")

    with raw(answer) as one:
        assert "an answer that cannot be read" in refused(tmp_path, f"{one.url}/v1")


@pytest.mark.parametrize("pause", [0.05, 0.5])
def test_an_answer_that_drips_is_given_up(tmp_path, pause):
    for whole in (http(listing("512")) + b" " * 99, b"HTTP/1.1 100 Continue\r\n\r\n" * 99):
        with raw(lambda _, whole=whole: slowly(whole, pause=pause)) as one:
            assert "cannot be reached: TimeoutError" in refused(tmp_path, f"{one.url}/v1")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:99999/v1",
        "http://127.0.0.1:0/v1",
        "http://127.0.0.1:port/v1",
        "http://127.0.0.1\n.evil.org/v1",
        "http://127.0.0.1/v1\r\nX-Injected: 1",
        "http://127.0.0.1 /v1",
        "http://127.0.0.1\t/v1",
        "http:///v1",
        "http://",
        "http://[::1/v1",
        "http://[zz]/v1",
        "http://127.0.0.1\\@evil.org/v1",
        "http://\x1b[31m/v1",
        "http://" + "a" * 300 + "/v1",
        "http://a..b/v1",
        "http://xn--/v1",
    ],
)
def test_an_address_that_is_none(tmp_path, url):
    refused(tmp_path, url)


@pytest.mark.parametrize("url", ["http://me:{}@127.0.0.1:9/v1", "http://127.0.0.1:9/v1?key={}", "http://a/v1#{}"])
def test_no_key_in_an_address(tmp_path, url):
    for several in ([], ["http://127.0.0.1:9/v1"]):
        said = refused(tmp_path, *several, url.format("s3cret"))
        assert "no keys in the address" in said and "s3cret" not in said


def test_an_address_of_version_6(tmp_path):
    try:
        with raw(lambda _: http("{}", "404 Not Found"), host="::1") as one:
            assert "404 Not Found" in refused(tmp_path, f"{one.url}/v1")
            assert b"Host: [::1]:" in one.heads[0]
    except OSError:
        pytest.skip("no such addresses here")


SPELLED = {
    "as it is": SECRET,
    "as JSON": json.dumps(SECRET)[1:-1],
    "as JSON with slashes": json.dumps(SECRET)[1:-1].replace("/", "\\/"),
    "as JSON in code points": "".join(f"\\u{ord(c):04X}" for c in SECRET),
    "percent": quote(SECRET, safe=""),
    "percent in lower case": quote(SECRET, safe="").replace("%5C", "%5c").replace("%2F", "%2f"),
    "Python": repr({"Authorization": f"Bearer {SECRET}"}),
    "base64": base64.b64encode(SECRET.encode()).decode(),
    "base64 within a text": base64.b64encode(b"Bearer " + SECRET.encode()).decode(),
    "base64 of a user": base64.urlsafe_b64encode(b"me:" + SECRET.encode() + b"!").decode(),
    "hex": SECRET.encode().hex(),
    "cut by us": "x" * 285 + SECRET,
}


@pytest.mark.parametrize("spelled", SPELLED)
def test_a_key_that_the_server_echoes_is_not_told(tmp_path, monkeypatch, spelled):
    monkeypatch.setenv(KEY, SECRET)
    echoed = SPELLED[spelled]
    # What two neighbours in base64 tell apart is told of the first and the last letter, and of no other.
    pieces = {echoed[at : at + 10] for at in range(4, len(echoed) - 14)} - {"x" * 10}
    answers = [
        http(json.dumps({"error": {"message": f"not you: {echoed}"}}), "401 Unauthorized"),
        http(json.dumps({"error": f"not you: {echoed}"}), "403 Forbidden"),
        http("{}", f"400 {echoed}"),
        http(json.dumps({"data": [{"id": echoed}]})),
        http(listing(json.dumps(echoed))),
        f"HTTP/9.9 {echoed}\r\n\r\n".encode(),
    ]
    for answer in answers:
        with raw(lambda _, answer=answer: answer) as one:
            said = refused(tmp_path, f"{one.url}/v1")
        if spelled == "Python":  # only the key is hidden of it
            pieces = {SECRET[4:14], SECRET[-10:]}
        assert not [piece for piece in pieces if piece in said], said
        assert b"Authorization: Bearer sk-" in one.heads[0]


@pytest.mark.parametrize(
    "secret", ["s3cret\nX-Evil: 1", "s3cret\r\nb", "s3cret\x00", "s3cr\u00e9t", "s3cret\x1b[31m", "\u200bs3cret"]
)
def test_a_key_that_is_none_is_refused_and_not_shown(tmp_path, monkeypatch, secret):
    try:
        monkeypatch.setenv(KEY, secret)
    except ValueError:
        pytest.skip("no environment holds it")
    with raw(lambda _: http("{}")) as one:
        said = refused(tmp_path, f"{one.url}/v1")
        assert KEY in said and "s3c" not in said and "Evil" not in said
        assert not one.heads


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_key_follows_no_redirect(tmp_path, monkeypatch, status):
    monkeypatch.setenv(KEY, "s3cret")
    with (
        raw(lambda _: http(listing("512"))) as other,
        raw(lambda _: http("", f"{status} Go There", f"Location: {other.url}/v1/models")) as one,
    ):
        assert f"{status} Go There" in refused(tmp_path, f"{one.url}/v1")
        assert b"Bearer s3cret" in one.heads[0] and not other.heads


def test_a_proxy_of_the_environment_sees_no_key(tmp_path, monkeypatch):
    monkeypatch.setenv(KEY, "s3cret")
    with raw(lambda _: http("{}", "404 Not Found")) as one, raw(lambda _: http("", "502 No")) as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
            assert "404 Not Found" in refused(tmp_path, f"{one.url}/v1")
            assert one.heads and not proxy.heads  # in the clear it is asked without one
            monkeypatch.delenv(name)
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        refused(tmp_path, "https://teacher.invalid/v1")
        assert proxy.heads[0].startswith(b"CONNECT teacher.invalid:443") and b"s3cret" not in b"".join(proxy.heads)


@pytest.mark.parametrize(
    ("name", "value"),
    [("HTTPS_PROXY", "socks5://127.0.0.1:9"), ("HTTPS_PROXY", "nonsense://x"), ("SSL_CERT_FILE", "./no")],
)
def test_an_environment_that_cannot_be(tmp_path, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    refused(tmp_path, "https://127.0.0.1:9/v1")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes the certificate")
def test_a_certificate_that_nobody_vouches_for(tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "STARTING", 600)  # no patience mends it
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    made = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *made]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(cert, key)
    with raw(lambda _: http("{}", "404 Not Found"), tls=tls) as one:
        said = refused(tmp_path, f"{one.url}/v1")
        assert one.url in said and "CERTIFICATE_VERIFY_FAILED" in said and "SSL_CERT_FILE" in said and not one.heads
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
        assert "404 Not Found" in refused(tmp_path, f"{one.url}/v1")
    with raw(lambda _: http("{}")) as one:  # speaks no TLS
        assert "127.0.0.1" in refused(tmp_path, f"{one.url.replace('http', 'https')}/v1")

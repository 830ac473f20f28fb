"""Where a tenant may send the gateway: what it names, and what that resolves to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idiolect.errors import ConfigurationError, InvalidInputError
from idiolect.upstreams import HostRules, pick_address

RULES = HostRules.parse("api.example.com, http://10.0.0.5:8000, https://llm.internal:8443, http://[fd00::5]:80")
ANY = HostRules.parse("*")


@pytest.mark.parametrize(
    ("url", "host", "path", "private"),
    [
        ("https://api.example.com", "api.example.com", "", False),
        ("https://api.example.com/v1", "api.example.com", "/v1", False),
        ("https://api.example.com:443/v1/", "api.example.com", "/v1", False),
        ("http://10.0.0.5:8000/v1", "10.0.0.5", "/v1", True),
        ("https://llm.internal:8443/a/b-c_d~e", "llm.internal", "/a/b-c_d~e", True),
        ("http://[fd00:0::5]/v1", "fd00::5", "/v1", True),
    ],
)
def test_what_the_operator_listed_may_be_named(url: str, host: str, path: str, private: bool) -> None:
    target = RULES.target(url)
    assert (target.origin.host, target.path, target.private) == (host, path, private)


@pytest.mark.parametrize(
    "url",
    [
        "http://api.example.com/v1",  # not https
        "https://api.example.com:8443/v1",
        "https://evil.test/v1",
        "https://api.example.com.evil.test",
        "https://evil.test/api.example.com",
        "https://api.example.com@evil.test/",
        "https://user:pass@api.example.com/",
        "https://api.example.com:443@evil.test/",
        "https://api.example.com\\@evil.test/",
        "https://api.example.com/v1?x=1",
        "https://api.example.com/v1#x",
        "https://api.example.com/../x",
        "https://api.example.com/v1/./x",
        "https://api.example.com//evil.test",
        "https://api.example.com/%2e%2e/x",
        "https://api.example.com/v1\r\nHost: evil.test",
        "https://api.example.com/v1\n",
        " https://api.example.com",
        "https://API.example.com",
        "https://api.example.com./",
        "https://аpi.example.com/",  # a Cyrillic a
        "https://api。example。com/",
        "https://10.0.0.5:8000/v1",  # the scheme belongs to what was listed
        "http://10.0.0.5/v1",
        "http://10.0.0.5:8001",
        "http://10.0.0.5:08000",
        "http://10.0.0.5:99999",
        "http://127.0.0.1/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0x7f.1/",
        "http://0177.0.0.1/",
        "http://127.1/",
        "http://[::ffff:10.0.0.5]:8000/",
        "http://[::1]/",
        "http://localhost:8000/",
        "http://169.254.169.254/latest/meta-data",
        "file:///etc/passwd",
        "gopher://api.example.com",
        "ftp://api.example.com",
        "//api.example.com",
        "https:api.example.com",
        "https://",
        "",
        "https://api.example.com/" + "x" * 400,
    ],
)
def test_everything_else_is_refused_without_saying_what_is_listed(url: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        RULES.target(url)
    assert "internal" not in str(refused.value)
    assert "10.0.0.5" not in str(refused.value)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "10.1.2.3", "8.8.8.8", "2130706433", "0x7f.1", "127.1", "[::1]", "1.2.3"]
)
def test_any_name_means_names_and_not_addresses(host: str) -> None:
    assert ANY.target("https://api.example.org/v1").private is False
    with pytest.raises(InvalidInputError):
        ANY.target(f"https://{host}/v1")


def test_nothing_is_allowed_where_nothing_is_listed() -> None:
    with pytest.raises(InvalidInputError):
        HostRules.parse("").target("https://api.example.com")


@pytest.mark.parametrize(
    "setting", ["https://", "api example", "http://a.b/path", "http://u@a.b", "*.example.com", "a.b, [::1]", "10.0.0.5"]
)
def test_an_entry_that_is_neither_a_name_nor_an_origin_is_named(setting: str) -> None:
    with pytest.raises(ConfigurationError, match="IDIOLECT_UPSTREAM_HOSTS"):
        HostRules.parse(setting)


PUBLIC = ANY.target("https://api.example.org")
PRIVATE = RULES.target("http://10.0.0.5:8000")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.255.255.254",
        "0.0.0.0",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fd00:ec2::254",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::",
        "2002:a00:1::1",
        "2001:0:0:0:0:0:80ff:fffe",
        "2001:db8::1",
        "not an address",
        "",
    ],
)
def test_a_name_that_leads_inside_is_refused_alone_and_among_public_addresses(address: str) -> None:
    for answers in ([address], ["93.184.216.34", address], [address, "93.184.216.34"]):
        with pytest.raises(InvalidInputError, match="no usable address"):
            pick_address(answers, PUBLIC)


def test_a_public_address_is_taken_and_a_listed_origin_may_be_private() -> None:
    assert pick_address(["93.184.216.34", "2606:4700::1111"], PUBLIC) == "93.184.216.34"
    assert pick_address(["64:ff9b::5db8:d822"], PUBLIC) == "64:ff9b::5db8:d822"
    assert pick_address(["10.0.0.5"], PRIVATE) == "10.0.0.5"
    with pytest.raises(InvalidInputError):
        pick_address([], PUBLIC)


@given(st.text(max_size=80))
def test_no_text_at_all_leads_anywhere_but_to_the_listed_hosts(text: str) -> None:
    for url in (text, f"https://{text}", f"https://api.example.com{text}"):
        try:
            target = RULES.target(url)
        except InvalidInputError:
            continue
        assert target.origin.host in {"api.example.com", "10.0.0.5", "llm.internal", "fd00::5"}
        assert target.path.isascii()

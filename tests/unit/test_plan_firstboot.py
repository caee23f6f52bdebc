"""What a guest is told at its first boot: the documents, and when it can't be told."""

import json
import subprocess

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serai.errors import Code, Conflict, Invalid
from serai.model.actions import CreateGuest, LaunchGuest
from serai.model.firstboot import FirstBoot, WaitFor
from serai.model.guest import GuestSpec
from serai.model.image import Expect, Image, ImageKind
from serai.plan.firstboot import (
    SeedPort,
    check_first_boot,
    check_host_name,
    check_told,
    look_words,
    plan_documents,
    user_in,
    who_words,
)

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me"
IMAGE = Image(name="debian", digest="d", kind=ImageKind.DISK, created_at=0.0, size=1)
SPEC = GuestSpec(image="debian", name="web1")


def documents(told: FirstBoot, *ports: SeedPort) -> dict[str, bytes]:
    return dict(plan_documents(told, instance_id="id-1", hostname="web1.lan", ports=ports))


def test_the_documents_say_who_it_is_and_pass_the_rest_on() -> None:
    found = documents(FirstBoot(ssh_keys=(KEY,), user_data="#!/bin/sh\n"))
    assert sorted(found) == ["meta-data", "network-config", "user-data"]
    assert json.loads(found["meta-data"]) == {
        "instance-id": "id-1",
        "local-hostname": "web1.lan",
        "public-keys": [KEY],
    }
    assert found["user-data"] == b"#!/bin/sh\n"
    assert documents(FirstBoot())["user-data"] == b"#cloud-config\n{}\n"


def test_ports_are_found_by_their_address_and_have_theirs_or_ask() -> None:
    static = SeedPort(
        mac="52:54:00:00:00:01",
        address="10.1.0.5/24",
        address6="fd00::5/64",
        gateway="10.1.0.1",
        gateway6="fd00::1",
        dns=("10.1.0.1", "fd00::1"),
        search="lan.internal",
    )
    asking = SeedPort(mac="52:54:00:00:00:02", address6="fd01::5/64")
    found = json.loads(documents(FirstBoot(), static, asking)["network-config"])
    assert found == {
        "version": 2,
        "ethernets": {
            "net0": {
                "match": {"macaddress": "52:54:00:00:00:01"},
                "dhcp4": False,
                "addresses": ["10.1.0.5/24", "fd00::5/64"],
                "routes": [{"to": "0.0.0.0/0", "via": "10.1.0.1"}],
                "gateway6": "fd00::1",
                "nameservers": {"addresses": ["10.1.0.1", "fd00::1"], "search": ["lan.internal"]},
            },
            "net1": {
                "match": {"macaddress": "52:54:00:00:00:02"},
                "dhcp4": True,
                "addresses": ["fd01::5/64"],
            },
        },
    }


@settings(deadline=None)
@given(st.text(alphabet="ab-.Z0 _\n", max_size=20))
def test_host_names(name: str) -> None:
    parts = name.split(".")
    can_be = all(
        part and part.replace("-", "a").isalnum() and part.strip("-") == part for part in parts
    ) and not set(name) & set(" _\n")
    if can_be:
        assert check_host_name(name) == name
    else:
        with pytest.raises(Invalid):
            check_host_name(name)


@pytest.mark.parametrize("name", ["a" * 64, ".".join(["a" * 60] * 5), "", "a..b", "ä"])
def test_host_names_that_can_not_be(name: str) -> None:
    with pytest.raises(Invalid) as caught:
        check_host_name(name)
    assert caught.value.code is Code.NAME_INVALID


def test_all_of_it_is_checked() -> None:
    good = FirstBoot(hostname="web1.lan", ssh_keys=(f" {KEY}",), user_data="#!/bin/sh")
    assert check_first_boot(good) == msgspec.structs.replace(good, ssh_keys=(KEY,))
    for bad in (FirstBoot(hostname="-"), FirstBoot(ssh_keys=("x",)), FirstBoot(user_data="x")):
        with pytest.raises(Invalid):
            check_first_boot(bad)
    assert not FirstBoot().is_wanted
    assert FirstBoot(hostname="x").is_wanted


@pytest.mark.parametrize(
    ("image", "action", "why"),
    [
        ({"cloud_init": Expect.NO}, CreateGuest(spec=SPEC, seed="s"), "has no cloud-init that"),
        ({"warm": True}, LaunchGuest(spec=SPEC, seed="s"), "warm image"),
        (
            {"cloud_init": Expect.NO},
            LaunchGuest(spec=SPEC, wait_for=WaitFor.CLOUD_INIT),
            "no cloud-init to wait for",
        ),
        (
            {"agent": Expect.NO},
            LaunchGuest(spec=SPEC, wait_for=WaitFor.CLOUD_INIT),
            "no agent that could tell",
        ),
        ({}, LaunchGuest(spec=SPEC, seed="s", wait_for=WaitFor.CLOUD_INIT), ""),
        ({"cloud_init": Expect.NO}, LaunchGuest(spec=SPEC, wait_for=WaitFor.SSH), ""),
        (
            {"cloud_init": Expect.NO},
            LaunchGuest(spec=SPEC, wait=False, wait_for=WaitFor.CLOUD_INIT),
            "",
        ),
    ],
)
def test_images_whose_guests_can_not_be_told(
    image: dict[str, object], action: LaunchGuest | CreateGuest, why: str
) -> None:
    fitted = msgspec.structs.replace(IMAGE, **image)
    if not why:
        check_told(action, fitted)
        return
    with pytest.raises(Conflict, match=why) as caught:
        check_told(action, fitted)
    assert caught.value.code is Code.IMAGE_UNFIT
    assert caught.value.hint


@pytest.mark.parametrize("words", [look_words("begin"), who_words()])
def test_what_is_asked_is_shell(words: list[str]) -> None:
    subprocess.run([words[0], "-n", *words[1:3]], check=True)


@pytest.mark.parametrize(
    ("told", "user"),
    [
        ("ssh-ed25519 AAAA\nuser debian\n", "debian"),
        ("user root\n", "root"),
        ("", "root"),
        ("user -oProxyCommand=x\n", "root"),
        ("user $(x)\nuser x y\n", "root"),
    ],
)
def test_as_whom_to_log_in(told: str, user: str) -> None:
    assert user_in(told) == user

"""Settings: one table, three sources; and where everything is."""

from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serai.errors import Code, Invalid
from serai.settings import SETTINGS, Settings, find_places, read_settings
from serai.units import MIB

DEFAULTS = {setting.name: setting.default for setting in SETTINGS}


def read(environ: dict[str, str], file: Path, toml: str = "") -> Settings:
    if toml:
        file.write_text(toml, encoding="utf-8")
    return read_settings(environ, file)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "serai.toml"


def test_the_fields_are_those_of_the_table():
    assert [field.name for field in fields(Settings)] == [setting.name for setting in SETTINGS]
    for field in fields(Settings):
        assert type(DEFAULTS[field.name]) is field.type


def test_every_default_can_be_written_as_text():
    """What the docs show as the default is what can be set."""
    for setting in SETTINGS:
        if setting.default != "":
            assert setting.parse(str(setting.default)) == setting.default
        assert setting.help[0].isupper() or setting.help.startswith("auto")
        assert setting.help.endswith(".")


def test_without_anything_the_defaults_hold(file: Path):
    assert read({}, file) == Settings(**DEFAULTS)


def test_the_environment_goes_over_the_file_and_the_file_over_the_default(file: Path):
    toml = 'accel = "tcg"\nlog_limit = "2MiB"\njobs_kept = 7\nheartbeat = 0.5\n'
    found = read({"SERAI_LOG_LIMIT": "3MiB", "SERAI_ELSE": "x"}, file, toml)
    assert (found.accel, found.log_limit, found.jobs_kept, found.heartbeat) == (
        "tcg",
        3 * MIB,
        7,
        0.5,
    )
    assert found.events_kept == DEFAULTS["events_kept"]


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("SERAI_ACCEL", "fast"),
        ("SERAI_ACCEL", ""),
        ("SERAI_ACCEL", "x" * 10_000),
        ("SERAI_JOBS_KEPT", "0"),
        ("SERAI_JOBS_KEPT", "-1"),
        ("SERAI_JOBS_KEPT", "1.5"),
        ("SERAI_JOBS_KEPT", "9" * 5_000),
        ("SERAI_UID_BASE", str(1 << 31)),
        ("SERAI_LOG_LIMIT", "0"),
        ("SERAI_LOG_LIMIT", "much"),
        ("SERAI_HEARTBEAT", "0"),
        ("SERAI_HEARTBEAT", "-1s"),
        ("SERAI_START_TIMEOUT", "0ms"),
    ],
)
def test_a_bad_value_is_refused_with_its_name_and_place(file: Path, variable: str, text: str):
    with pytest.raises(Invalid) as caught:
        read({variable: text}, file)
    assert caught.value.code in (Code.VALUE_INVALID, Code.SIZE_INVALID)
    assert variable.removeprefix("SERAI_").lower() in caught.value.message
    assert variable in caught.value.message
    assert len(caught.value.message) < 300


def test_the_hint_of_a_bad_value_is_kept(file: Path):
    with pytest.raises(Invalid) as caught:
        read({"SERAI_LOG_LIMIT": "much"}, file)
    assert "512MiB" in caught.value.hint


@pytest.mark.parametrize(
    "toml",
    [
        "heartbeats = 5",
        "[daemon]\nheartbeat = 5",
        "heartbeat = 0",
        "heartbeat = true",
        'qemu = ["a", "b"]',
        "qemu = true",
        "qemu = 2020-01-01",
        "heartbeat = {}",
        "heartbeat = inf",
        "heartbeat = ",
        "heartbeat = 1\nheartbeat = 2",
        "\x00",
    ],
)
def test_a_bad_file_is_refused_with_its_path(file: Path, toml: str):
    with pytest.raises(Invalid) as caught:
        read({}, file, toml)
    assert caught.value.code is Code.VALUE_INVALID
    assert str(file) in caught.value.message


def test_a_file_that_is_no_text_or_no_file_is_refused(file: Path, tmp_path: Path):
    file.write_bytes(b"qemu = '\xff'")
    for path in (file, tmp_path):
        with pytest.raises(Invalid):
            read_settings({}, path)


@given(kept=st.integers(1, (1 << 31) - 1), size=st.integers(1, 1 << 40), text=st.text(max_size=20))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_set_is_what_is_read(file: Path, kept: int, size: int, text: str):
    environ = {"SERAI_JOBS_KEPT": str(kept), "SERAI_BODY_LIMIT": str(size), "SERAI_QEMU": text}
    found = read_settings(environ, file)
    assert (found.jobs_kept, found.body_limit, found.qemu) == (kept, size, text)


# -- places ------------------------------------------------------------------------------------------


def test_everything_moves_under_serai_home():
    places = find_places({"SERAI_HOME": "/x/y", "XDG_DATA_HOME": "/z"}, is_root=False)
    everything = [getattr(places, name) for name in dir(type(places)) if not name.startswith("_")]
    paths = [path for path in everything if isinstance(path, Path)]
    assert len(paths) > 8
    assert len(set(paths)) == len(paths)
    assert all(path.is_relative_to("/x/y") for path in paths)


def test_a_relative_home_is_made_absolute():
    assert find_places({"SERAI_HOME": "here"}, is_root=True).state == Path.cwd() / "here/state"


def test_root_uses_the_systems_folders():
    places = find_places({"HOME": "/root", "XDG_RUNTIME_DIR": "/run/user/0"}, is_root=True)
    assert (places.state, places.run) == (Path("/var/lib/serai"), Path("/run/serai"))


@pytest.mark.parametrize(
    ("environ", "state", "run"),
    [
        ({"HOME": "/h"}, "/h/.local/share/serai", "/h/.local/share/serai/run"),
        ({"HOME": "/h", "XDG_DATA_HOME": "/d"}, "/d/serai", "/d/serai/run"),
        ({"HOME": "/h", "XDG_RUNTIME_DIR": "/r"}, "/h/.local/share/serai", "/r/serai"),
        ({"HOME": "/h", "XDG_DATA_HOME": "relative"}, "/h/.local/share/serai", None),
        ({"HOME": "/h", "XDG_RUNTIME_DIR": "relative"}, None, "/h/.local/share/serai/run"),
        ({}, "/.local/share/serai", None),
    ],
)
def test_a_user_has_the_folders_of_the_xdg(environ, state, run):
    places = find_places(environ, is_root=False)
    assert state is None or places.state == Path(state)
    assert run is None or places.run == Path(run)
    assert places.home == ""

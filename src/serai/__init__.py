"""serai: run, keep and multiply machines.

    import serai

    with serai.connect() as inn:
        guest = inn.launch("tiny", name="web1", memory="256MiB")
        print(guest.run("uname -a").stdout)

The async twin is ``serai.aio``; the errors are in ``serai.errors``. Nothing is imported before it
is used (PEP 562), so that the command line starts at once.
"""

from importlib import import_module

LAZY = {
    "connect": "serai.client.inn",
    "Inn": "serai.client.inn",
    "Guest": "serai.client.guests",
    "Snapshot": "serai.client.guests",
    "Schedule": "serai.client.schedules",
    "Keep": "serai.model.schedule",
    "Volume": "serai.client.volumes",
    "Result": "serai.client.words",
    "SeraiError": "serai.errors",
}
MODULES = ("aio", "errors")

__all__ = [
    "Guest",
    "Inn",
    "Keep",
    "Result",
    "Schedule",
    "SeraiError",
    "Snapshot",
    "Volume",
    "aio",
    "connect",
    "errors",
]


def __getattr__(name: str) -> object:
    if name in LAZY:
        return getattr(import_module(LAZY[name]), name)
    if name in MODULES:
        return import_module(f"serai.{name}")
    raise AttributeError(f"module 'serai' has no attribute {name!r}")

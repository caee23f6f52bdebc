"""Pages of the documentation that are made from the program's own tables: ``make docs``."""

from serai.errors import EXIT_CODES, FAMILIES
from serai.model.lifecycle import MOVES, Accept, Admission, Deny, GuestState, Verb
from serai.settings import SETTINGS, Setting
from serai.units import format_duration, format_size

MADE = "<!-- Made by `make docs`; edit what it is made from, not this page. -->\n\n"
SIZES = ("log_limit", "disk_reserve", "body_limit", "image_limit")
DURATIONS = (
    "agent_timeout",
    "start_timeout",
    "stop_timeout",
    "heartbeat",
    "monitor_timeout",
)

SETTINGS_INTRO = """\
# Settings

The daemon reads a setting `name` from the environment variable `SERAI_NAME`; without it from the line
`name = "value"` of `serai.toml` in its state folder; without that it takes the default. A size is
written like `256MiB`, a duration like `30s`. An unknown name in the file is refused.

Where everything is: `SERAI_HOME=DIR` puts state below `DIR/state` and sockets below `DIR/run`, so that
several daemons live side by side. Without it, root has `/var/lib/serai` and `/run/serai`; a user has
`$XDG_DATA_HOME/serai` (`~/.local/share/serai`) and `$XDG_RUNTIME_DIR/serai`.
"""

STATES_INTRO = """\
# States and verbs

What may be asked of a guest in each state. `→ state` is accepted, and is the guest's state while it is
carried out; `yes` is accepted and changes no state; `–` is so already, which is never an error; a word
in italics is the reason of a refusal, which answers with the problem `guest-state`. `kill` is a forced
stop, `destroy` a forced delete; `snapshot` is also what a fork and a published image begin with; `talk` is
exec, push and pull; `look` is console, screenshot and VNC.
"""


def _default(setting: Setting) -> str:
    value = setting.default
    if setting.name in SIZES and isinstance(value, int):
        return format_size(value)
    if setting.name in DURATIONS and isinstance(value, float):
        return format_duration(value)
    return str(value) if value != "" else "empty"


def settings_page() -> str:
    """Return docs/settings.md."""
    parts = [MADE + SETTINGS_INTRO]
    for each in SETTINGS:
        parts.append(
            f"## `{each.name}`\n\n{each.help}\n\n"
            f"`SERAI_{each.name.upper()}`, default: {_default(each)}\n"
        )
    return "\n".join(parts)


def _cell(admission: Admission) -> str:
    match admission:
        case Accept(state=None):
            return "yes"
        case Accept(state=state):
            return f"→ {state}"
        case Deny(reason=reason):
            return f"*{reason}*"
        case _:
            return "–"


def states_page() -> str:
    """Return docs/states.md."""
    verbs = list(Verb)
    lines = [
        MADE + STATES_INTRO,
        f"| state | {' | '.join(f'`{verb}`' for verb in verbs)} |",
        "|---" * (len(verbs) + 1) + "|",
    ]
    for state in GuestState:
        cells = [_cell(MOVES[state][verb]) for verb in verbs]
        lines.append(f"| `{state}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def exit_codes_table() -> str:
    """Return the table of families and exit codes that docs/problems.md holds."""
    lines = ["| family | exit code | what it means |", "|---|---|---|"]
    for family, error in FAMILIES.items():
        meaning = (error.__doc__ or "").split(".")[0].split(";")[0]
        lines.append(f"| `{family}` | {EXIT_CODES[family]} | {meaning} |")
    return "\n".join(lines)


PAGES = {"settings.md": settings_page, "states.md": states_page}

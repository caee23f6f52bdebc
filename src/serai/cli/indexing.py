"""``serai image index`` and ``serai image key``: for whoever publishes images. No daemon is asked."""

from importlib import import_module
from pathlib import Path

import click

from serai.cli.layout import size
from serai.cli.options import format_option
from serai.cli.output import print_json, print_line, print_table, say

COLUMNS = ("NAME", "FILE", "SIZE", "SHA256")


@click.command()
@click.argument("folder", metavar="DIR")
@click.option("--title", default="", metavar="TEXT", help="What the index is, for people.")
@click.option("--sign-key", default="", metavar="FILE", help="Sign it with this private key.")
@format_option
def index(folder: str, title: str, sign_key: str, form: str) -> None:
    """Make an index of the images in a folder.

    Of exported images (.tar) and of disks (.qcow2, .raw, .img, .vmdk, .iso, compressed or not). It
    becomes DIR/index.json, and any web server can give the folder away: others pull from it with
    `serai image pull NAME --index URL/index.json`. debian-12.qcow2 is the version 12 of debian.
    """
    made, signer = import_module("serai.client.indexing").write_index(
        Path(folder),
        title=title,
        key=Path(sign_key) if sign_key else None,
        on_file=lambda name: say(f"reading {name}"),
    )
    if form == "json":
        print_json(made)
        return
    rows = [(each.full_name, each.url, size(each.size), each.sha256[:12]) for each in made.entries]
    print_table(COLUMNS, rows)
    print_line(f"{folder}/index.json, {f'signed by {signer[:19]}' if signer else 'not signed'}")


@click.command()
@click.argument("file", metavar="FILE")
@format_option
def key(file: str, form: str) -> None:
    """Make a pair of keys to sign indexes with.

    FILE is the private one and stays with you; FILE.pub is for those who pull: with --key, or in the
    folder `keys` of their state folder.
    """
    fingerprint = import_module("serai.client.indexing").make_key(Path(file))
    if form == "json":
        print_json({"private": file, "public": f"{file}.pub", "fingerprint": fingerprint})
    else:
        print_line(f"{file} and {file}.pub: {fingerprint}")

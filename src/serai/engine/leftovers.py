"""What an interrupted freeze or restore left beside a guest: removed when the next daemon starts.

The guest's record says which heads are its own, ``running.json`` where its QEMU listens. All else of
our making is nobody's: heads that were made for a chain that was not stored, or that stand for one
that is a layer by now; run folders of a second QEMU; files that were being written.
"""

import re
import shutil
from pathlib import Path

from serai.disk.files import naming_disk_problems, sync_folder
from serai.disk.volumes import stray_heads
from serai.engine.driver import GuestDriver
from serai.engine.restoring import tidy_firmware
from serai.qemu.resources import remove_sockets

RUN_FOLDER = re.compile(r"[0-9a-f]{8}", re.ASCII)
BEING_WRITTEN = ".*.new"


def sweep_beside(driver: GuestDriver) -> None:
    """Remove what an earlier daemon left in the guest's folders.

    To be called when nothing is done to the guest, and after it was found out what runs.
    """
    places, guest_id = driver.house.places, driver.record.id
    with naming_disk_problems("sweeping a guest's folder"):
        if (places.guests / guest_id).is_dir():
            _sweep_state(driver, places.guests / guest_id)
        if (places.guests_run / guest_id).is_dir():
            _sweep_run(driver, places.guests_run / guest_id)


def _sweep_state(driver: GuestDriver, folder: Path) -> None:
    tidy_firmware(driver)
    volumes = driver.record.volumes
    ours = "|".join(re.escape(volume.name) for volume in volumes)
    made = re.compile(rf"(?:{ours})(?:-[0-9a-f]{{8}})?\.qcow2", re.ASCII)
    strays = [
        path for path in stray_heads(folder, volumes) if volumes and made.fullmatch(path.name)
    ]
    for path in (*strays, *folder.glob(BEING_WRITTEN)):
        path.unlink(missing_ok=True)
    sync_folder(folder)


def _sweep_run(driver: GuestDriver, folder: Path) -> None:
    used = driver.instance.run_dir if driver.instance is not None else None
    if used != folder:
        remove_sockets(folder)
    for path in folder.iterdir():
        if RUN_FOLDER.fullmatch(path.name) and path != used:
            shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(BEING_WRITTEN):
        path.unlink(missing_ok=True)

"""What a guest is told at its first boot, on its way from the request to the guest's disc.

It is looked at and put away before anything is made (``sealed``), so that neither the job nor the
record holds it. Each start gives the guest its disc (``write_seed``). See docs/design/0045.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from serai.disk.seeds import name_of, write_disc
from serai.engine.collecting import collect_seeds
from serai.engine.driver import GuestDriver
from serai.engine.house import House
from serai.host.supervise import whole
from serai.model.actions import CreateGuest, LaunchGuest
from serai.model.firstboot import FirstBoot
from serai.plan.firstboot import check_first_boot, plan_documents, seed_ports
from serai.plan.machine import SEED_NAME

WRITING_LIMIT = 60.0


@asynccontextmanager
async def sealed(
    house: House, action: LaunchGuest | CreateGuest
) -> AsyncIterator[LaunchGuest | CreateGuest]:
    """Give the action without what its guest is told: that is kept under the name ``seed``.

    It stays for the length of the block, and after that as long as a record names it. Raises
    Invalid (``ssh-key-invalid``, ``user-data-invalid``, ``name-invalid``), with nothing kept.
    """
    if not action.first_boot.is_wanted:
        yield action
        return
    told = await asyncio.to_thread(check_first_boot, action.first_boot)
    kept = FirstBoot(ssh_keys=told.ssh_keys, user_data=told.user_data)
    seed = name_of(kept)
    try:
        with house.seeds.held(seed):
            await asyncio.to_thread(house.seeds.put, kept)
            yield msgspec.structs.replace(
                action, first_boot=FirstBoot(hostname=told.hostname), seed=seed
            )
    except BaseException:
        collect_seeds(house)
        raise


async def write_seed(driver: GuestDriver) -> None:
    """Put the disc for the first boot into the guest's folder, if the guest is told anything."""
    if driver.record.seed:
        await whole(asyncio.to_thread(_write_seed, driver), patience=WRITING_LIMIT)


def _write_seed(driver: GuestDriver) -> None:
    house, record = driver.house, driver.record
    documents = plan_documents(
        house.seeds.get(record.seed),
        instance_id=record.id,
        hostname=record.hostname,
        ports=seed_ports(record, {each.id: each.spec for each in house.fabric.networks.values()}),
    )
    write_disc(house.places.guests / record.id / SEED_NAME, documents)

"""Everybody who looks after something: each kind of thing has one keeper, and here they are wired.

A keeper knows the house, and those that were built before it; whatever else it needs is given to it
as a function.
"""

from dataclasses import dataclass

from serai.engine.carrying import Carrier
from serai.engine.checking import Checker
from serai.engine.creating import GuestCreator
from serai.engine.driver import GuestDriver
from serai.engine.forks import Forker
from serai.engine.forwards import ForwardKeeper
from serai.engine.groups import GroupKeeper
from serai.engine.guests import Guests
from serai.engine.house import House
from serai.engine.images import ImageKeeper
from serai.engine.importing import GuestImporter
from serai.engine.layer_keeper import LayerKeeper
from serai.engine.media import MediumChanger
from serai.engine.networks import NetworkKeeper
from serai.engine.pools import PoolKeeper
from serai.engine.ports import PortKeeper
from serai.engine.publishing import Publisher
from serai.engine.schedules import ScheduleKeeper, Submit
from serai.engine.snapshots import SnapshotKeeper, owner_of_image
from serai.engine.volume_copies import VolumeCopier
from serai.engine.volume_moments import VolumeMoments
from serai.engine.volumes import VolumeKeeper
from serai.model.guest import GuestRecord
from serai.model.lifecycle import GuestState


@dataclass(frozen=True, slots=True, kw_only=True)
class Keepers:
    """All keepers of a house. Made by ``build_keepers``."""

    guests: Guests
    images: ImageKeeper
    creator: GuestCreator
    importer: GuestImporter
    publisher: Publisher
    snapshots: SnapshotKeeper
    schedules: ScheduleKeeper
    forker: Forker
    layers: LayerKeeper
    checker: Checker
    volumes: VolumeKeeper
    moments: VolumeMoments
    copier: VolumeCopier
    pools: PoolKeeper
    media: MediumChanger
    carrier: Carrier
    networks: NetworkKeeper
    ports: PortKeeper
    groups: GroupKeeper
    forwards: ForwardKeeper


def build_keepers(house: House, submit: Submit) -> Keepers:
    """Wire the keepers of a house. ``submit`` takes an action on: schedules make some."""
    guests = Guests(house)
    house.shelf.guests = guests.records
    snapshots = SnapshotKeeper(house, guests.by_name)

    async def forget_snapshot(image: str) -> None:
        await snapshots.forget_owner(owner_of_image(image))

    images = ImageKeeper(house, guests.digests_in_use, forget_snapshot)
    volumes = VolumeKeeper(house, snapshots, guests.find)
    moments = VolumeMoments(house, snapshots, guests.find, volumes.lock)
    carrier = Carrier(house)
    ports = PortKeeper(house, carrier)
    creator = GuestCreator(house, guests, images, ports, volumes)
    layers = LayerKeeper(house)

    def adopt(record: GuestRecord) -> GuestDriver:
        """Take a new guest that was stored just now into the house."""
        image = images.by_digest(record.image_digest)
        driver = guests.make(record, image, GuestState.CREATING)
        guests.own(driver)
        return driver

    def digests_named() -> set[str]:
        return (guests.digests_in_use() | {each.digest for each in images.all()}) - {""}

    return Keepers(
        guests=guests,
        images=images,
        creator=creator,
        importer=GuestImporter(house, images, volumes, creator.create),
        publisher=Publisher(house, snapshots, images),
        snapshots=snapshots,
        schedules=ScheduleKeeper(house, guests.by_id.get, snapshots, submit),
        forker=Forker(house, snapshots, adopt, guests.find),
        layers=layers,
        checker=Checker(house, layers, guests.by_id.values(), digests_named),
        volumes=volumes,
        moments=moments,
        copier=VolumeCopier(house, snapshots, volumes, moments),
        pools=PoolKeeper(house, snapshots, volumes),
        media=MediumChanger(snapshots, guests.find, images.find),
        carrier=carrier,
        networks=NetworkKeeper(house, carrier),
        ports=ports,
        groups=GroupKeeper(house, carrier),
        forwards=ForwardKeeper(house, carrier),
    )

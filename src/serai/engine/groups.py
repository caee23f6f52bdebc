"""The keeper of security groups: a change holds at all ports in them, in one transaction."""

import msgspec

from serai.engine.carrying import Carrier
from serai.engine.fabric import Fabric
from serai.engine.house import House
from serai.engine.jobs import LiveJob
from serai.engine.networks import version_conflict
from serai.errors import Code, Conflict, Invalid
from serai.model.actions import ChangeGroup, CreateGroup, DeleteGroup
from serai.model.event import Event, EventKind
from serai.model.job import Job
from serai.model.network import Group, GroupChange, GroupRecord, GroupSpec, Rule
from serai.plan.rules import GROUP, check_group
from serai.store.changes import DropGroup, PutGroup
from serai.units import shorten


class GroupKeeper:
    """All that is done with security groups."""

    def __init__(self, house: House, carrier: Carrier) -> None:
        self._house = house
        self._carrier = carrier
        self._coming: set[str] = set()

    @property
    def _fabric(self) -> Fabric:
        return self._house.fabric

    def all(self) -> list[Group]:
        """Return all security groups."""
        return [self._fabric.show_group(each) for each in self._fabric.groups.values()]

    def one(self, name_or_id: str) -> Group:
        """Return one; NotFound (``group-not-found``)."""
        return self._fabric.show_group(self._fabric.group(name_or_id))

    async def create(self, action: CreateGroup, key: str) -> Job:
        """Make a security group, as a job."""
        name, ids, group_id = action.spec.name, self._fabric.group_ids(), self._house.new_id()
        if name in ids or name in self._coming:
            raise Conflict(
                Code.GROUP_EXISTS,
                f"there is a security group {name} already",
                hint="Choose another name; see which there are: serai rules list",
            )
        spec = check_group(action.spec, {**ids, name: group_id})
        record = GroupRecord(
            id=group_id, version=1, created_at=self._house.journal.now(), spec=spec
        )
        self._coming.add(name)

        async def work(job: LiveJob) -> None:
            await job.finish(
                PutGroup(record),
                events=(self._event(EventKind.GROUP_CREATED, record),),
                results=(record.id,),
                then=there,
            )

        def there() -> None:
            self._coming.discard(name)
            self._fabric.groups[record.id] = record

        async def undo() -> None:
            self._coming.discard(name)

        return await self._carrier.begin(action, name, "create", work, undo, key)

    async def change(self, action: ChangeGroup, key: str) -> Job:
        """Change a security group, as a job; on failure it is as before."""
        fabric, before = self._fabric, self._fabric.group(action.group)
        if action.version and action.version != before.version:
            raise version_conflict(before.spec.name, before.version, action.version)
        spec = self._changed(before.spec, action.change)
        after = msgspec.structs.replace(before, spec=spec, version=before.version + 1)
        fabric.groups[before.id] = after

        async def work(job: LiveJob) -> None:
            await self._house.cabling.refresh_rules()
            event = self._event(EventKind.GROUP_CHANGED, after)
            await job.finish(PutGroup(after), events=(event,), results=(after.id,))

        async def undo() -> None:
            if fabric.groups.get(before.id) is after:
                fabric.groups[before.id] = before
            await self._house.cabling.refresh_rules()

        return await self._carrier.begin(action, before.spec.name, "change", work, undo, key)

    def _changed(self, spec: GroupSpec, change: GroupChange) -> GroupSpec:
        add, remove = (self._stored(spec.name, rules) for rules in (change.add, change.remove))
        for given, rule in zip(change.remove, remove, strict=True):
            if rule not in spec.rules:
                raise Invalid(
                    Code.RULE_INVALID,
                    f"{spec.name} has no rule {_words(given)}",
                    hint=f"See which it has: serai rules show {spec.name}",
                )
        stay = [rule for rule in spec.rules if rule not in remove]
        note = spec.note if change.note is msgspec.UNSET else change.note
        own_ids = {each: each for each in self._fabric.groups}  # they are ids by now
        return check_group(GroupSpec(name=spec.name, rules=(*stay, *add), note=note), own_ids)

    def _stored(self, name: str, rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
        return check_group(GroupSpec(name=name, rules=rules), self._fabric.group_ids()).rules

    async def delete(self, action: DeleteGroup, key: str) -> Job:
        """Delete a security group that nothing uses, as a job."""
        fabric, record = self._fabric, self._fabric.group(action.group)
        self._check_unused(record)
        del fabric.groups[record.id]

        async def work(job: LiveJob) -> None:
            event = self._event(EventKind.GROUP_DELETED, record)
            await self._house.cabling.refresh_rules()
            await job.finish(DropGroup(record.id), events=(event,))

        async def undo() -> None:
            fabric.groups[record.id] = record

        return await self._carrier.begin(action, record.spec.name, "delete", work, undo, key)

    def _check_unused(self, record: GroupRecord) -> None:
        ports = len(self._fabric.ports_with(record.id))
        remote = f"{GROUP}{record.id}"
        named = [
            each.spec.name
            for each in self._fabric.groups.values()
            if each.id != record.id and any(rule.remote == remote for rule in each.spec.rules)
        ]
        if ports or named:
            what = f"{ports} ports are in it" if ports else f"rules of {named[0]} name it"
            raise Conflict(
                Code.GROUP_IN_USE,
                f"the security group {record.spec.name} is in use: {what}",
                hint="Take them out first: serai port set GUEST PORT --group …, serai rules remove …",
            )

    def _event(self, kind: EventKind, record: GroupRecord) -> Event:
        return self._house.journal.event(kind, record.spec.name, record.id)


def _words(rule: Rule) -> str:
    ports = f":{rule.ports}" if rule.ports else ""
    remote = f"@{rule.remote}" if rule.remote else ""
    return shorten(f"{rule.direction} {rule.protocol}{ports}{remote}")

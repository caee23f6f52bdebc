"""From what is stored and observed to what is shown of a guest: pure."""

from serai.model.guest import Accel, AgentState, Guest, GuestRecord
from serai.model.image import Image
from serai.model.lifecycle import GuestState
from serai.model.machine import Machine
from serai.model.network import PortBrief
from serai.units import format_size

TCG_NOTE = "emulated (TCG): slow, and not a security boundary"


def view_guest(
    record: GuestRecord,
    image: Image,
    state: GuestState,
    *,
    machine: Machine | None,
    accel: Accel,
    agent: AgentState,
    pid: int,
    started_at: float,
    restarts: int,
    ports: tuple[PortBrief, ...] = (),
) -> Guest:
    """Join the record with what is observed. ``machine`` is what runs now, if anything does."""
    spec = record.spec
    shown_accel = machine.accel if machine else accel
    return Guest(
        name=spec.name,
        id=record.id,
        kind=spec.kind,
        state=state,
        accel=shown_accel,
        image=spec.image,
        cpus=spec.cpus,
        memory=spec.memory,
        created_at=record.created_at,
        disk=max(spec.disk, image.virtual_size),
        firmware=spec.firmware,
        restart=spec.restart,
        labels=spec.labels,
        version=record.version,
        image_digest=record.image_digest,
        machine_type=record.machine_type,
        mac=record.mac,
        last_exit=record.last_exit,
        agent=agent,
        pid=pid,
        started_at=started_at,
        restarts=restarts,
        problem=record.problem,
        notes=_notes(record, machine, shown_accel),
        origin=record.origin,
        snapshot=record.snapshot,
        expires_at=record.expires_at,
        ports=ports,
        hostname=record.hostname,
    )


def _notes(record: GuestRecord, machine: Machine | None, accel: Accel) -> tuple[str, ...]:
    notes = [TCG_NOTE] if accel is Accel.TCG else []
    if machine is not None and machine.memory < record.spec.memory:
        notes.append(f"memory {format_size(record.spec.memory)} takes effect at the next start")
    if machine is not None and record.spec.cpus < machine.cpus:
        notes.append(f"{record.spec.cpus} CPUs take effect at the next start")
    return tuple(notes)

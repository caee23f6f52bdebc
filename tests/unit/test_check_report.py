"""What a check tells: the worst first, bounded, counted whole; what becomes of snapshots."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from serai.engine.checking import MOST_FINDINGS, judged, report_of
from serai.model.check import CheckReport, Fault, Finding, FindingKind
from serai.model.guest import GuestRecord, GuestSpec
from serai.model.snapshot import SnapshotRecord, SnapshotState

GUEST = GuestRecord(
    id="g", number=1, version=1, created_at=0.0, spec=GuestSpec(image="tiny", name="web1"),
    image_digest="", machine_type="q35", mac="", genid="",
)  # fmt: skip
READY = SnapshotRecord(
    id="s", name="s1", guest_id="g", guest=GUEST, created_at=0.0, state=SnapshotState.READY
)

FINDINGS = st.builds(
    Finding,
    fault=st.sampled_from(Fault),
    kind=st.sampled_from(FindingKind),
    id=st.just("x"),
    message=st.just("it is wrong"),
    mended=st.booleans(),
).filter(lambda each: not (each.mended and each.is_unsound))


@given(st.lists(FINDINGS, max_size=3 * MOST_FINDINGS))
def test_all_are_counted_and_the_worst_are_told(found: list[Finding]):
    report = report_of(found, layers=1, memories=2, images=3, snapshots=4)
    assert len(report.findings) + report.left_out == len(found)
    assert len(report.findings) <= MOST_FINDINGS
    assert report.unsound + report.orphans + report.mended == len(found)
    assert report.is_sound is (not any(each.is_unsound for each in found))
    ranks = [each.is_unsound for each in report.findings]
    assert ranks == sorted(ranks, reverse=True)


def test_the_sentence_counts_in_words():
    report = CheckReport(layers=1, memories=1, images=0, snapshots=1)
    assert report.sentence() == "1 layer, 1 memory, 1 snapshot: all sound"
    worse = msgspec.structs.replace(report, layers=0, unsound=2, mended=1, orphans=3)
    assert worse.sentence() == (
        "0 layers, 1 memory, 1 snapshot: 2 not sound, 1 orphan deleted, 3 orphans left"
    )


def test_a_snapshot_becomes_broken_and_ready_again():
    reason = Finding(
        fault=Fault.MISSING, kind=FindingKind.LAYER, id="l", message="the layer l is gone"
    )
    broken = judged(READY, reason)
    assert (broken.state, broken.problem and broken.problem.message) == (
        SnapshotState.BROKEN, "the layer l is gone",
    )  # fmt: skip
    assert judged(broken, reason) is broken
    assert judged(READY, None) is READY
    assert judged(broken, None) == READY
    other = judged(broken, msgspec.structs.replace(reason, message="worse"))
    assert other.problem and other.problem.message == "worse"

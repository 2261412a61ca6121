"""Collectives read from programs, and their time by hand."""

import pytest

from mosaicbert_jax.planning.collectives import (
    Collective,
    Links,
    members_of,
    read,
    seconds,
    share_moved,
)
from mosaicbert_jax.planning.traffic import Instruction, parse

LINKS = Links(inside=600e9, between=200e9)
HLO = """HloModule jit_step, is_scheduled=true

%body (state: (s32[], f32[1024,512])) -> (s32[], f32[1024,512]) {
  %state = (s32[], f32[1024,512]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[1024,512]{1,0} get-tuple-element(%state), index=1
  %part = f32[512,512]{1,0} slice(%x), slice={[0:512], [0:512]}
  %gather = (f32[512,512]{1,0}, f32[1024,512]{1,0}) all-gather-start(%part), \
replica_groups=[4,2]<=[8], dimensions={0}
  %whole = f32[1024,512]{1,0} all-gather-done(%gather)
  ROOT %next = (s32[], f32[1024,512]{1,0}) tuple(%i, %whole)
}

ENTRY %main (p: f32[1024,512], h: f32[4096,512]) -> f32[1024,512] {
  %p = f32[1024,512]{1,0} parameter(0)
  %h = f32[4096,512]{1,0} parameter(1)
  %zero = s32[] constant(0)
  %start = (s32[], f32[1024,512]{1,0}) tuple(%zero, %p)
  %loop = (s32[], f32[1024,512]{1,0}) while(%start), condition=%c, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  %x.1 = f32[1024,512]{1,0} get-tuple-element(%loop), index=1
  %sum = f32[1024,512]{1,0} all-reduce(%x.1), replica_groups={{0,2,4,6},{1,3,5,7}}, to_apply=%add
  %other = f32[4096,512]{1,0} all-reduce(%h), replica_groups=[4,2]<=[8], to_apply=%add
  %nobody = f32[1024,512]{1,0} all-reduce(%sum), replica_groups=[8,1]<=[8], to_apply=%add
  ROOT %scattered = f32[256,512]{1,0} reduce-scatter(%nobody), \
replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, to_apply=%add
}
"""


def test_collectives_of_a_program():
    """On data 4 x fsdp 2; parameters of 1024 x 512 and their halves."""
    work = parse(HLO).work()
    found = read(work, mesh=(4, 2, 1), fixed_sizes={1024 * 512, 512 * 512})
    mib = 2**20
    assert found == [
        Collective("all-gather", 2 * mib, 2, 3, over_data=False, with_rows=False),
        Collective("all-reduce", 2 * mib, 4, 1, over_data=True, with_rows=False),
        Collective("all-reduce", 8 * mib, 2, 1, over_data=False, with_rows=True),
        Collective("reduce-scatter", 2 * mib, 4, 1, over_data=True, with_rows=False),
    ]


@pytest.mark.parametrize(
    ("attributes", "members"),
    [
        (", replica_groups={{0,2},{1,3}}, to_apply=%add", (0, 2)),
        (", replica_groups={}, to_apply=%add", tuple(range(8))),
        (", replica_groups=[2,4]<=[8]", (0, 1, 2, 3)),
        (", replica_groups=[4,2]<=[2,4]T(1,0), use_global_device_ids=true", (0, 4)),
        (", replica_groups=[4,2]<=[2,2,2]T(0,2,1)", (0, 2)),
        (", replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1'}, x={}", (0, 1)),
        (", replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}", (0, 1, 4, 5)),
        (", replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", (0, 4)),
        (", source_target_pairs={{0,1},{1,0}}", (0, 1)),
    ],
)  # fmt: skip
def test_groups_as_they_are_written(attributes, members):
    instruction = Instruction("x", "all-reduce", (), (), attributes)
    assert members_of(instruction, devices=8) == members


def test_groups_of_an_unknown_form_are_an_error():
    instruction = Instruction("x", "all-reduce", (), (), ", replica_groups=@mesh {a}")
    with pytest.raises(ValueError, match="unknown groups of devices: replica_groups=@mesh"):
        members_of(instruction, devices=8)


@pytest.mark.parametrize(
    ("kind", "members", "share"),
    [
        ("all-reduce", 8, 2 * 7 / 8),
        ("all-gather", 8, 7 / 8),
        ("reduce-scatter", 4, 3 / 4),
        ("all-to-all", 2, 1 / 2),
        ("collective-permute", 2, 1),
        ("all-reduce", 1, 0),
    ],
)
def test_what_a_ring_moves(kind, members, share):
    assert share_moved(kind, members) == share


def test_seconds_inside_a_node():
    gradients = Collective("all-reduce", 600_000_000, 8, 1, over_data=True, with_rows=False)
    assert seconds(gradients, LINKS, node=8, nodes=1) == pytest.approx(1e-3 * 7 / 4)
    thrice = Collective("all-gather", 600_000_000, 2, 3, over_data=False, with_rows=False)
    assert seconds(thrice, LINKS, node=8, nodes=1) == pytest.approx(3 * 1e-3 / 2)
    assert seconds(thrice, LINKS, node=8, nodes=64) == pytest.approx(3 * 1e-3 / 2)  # stays inside


def test_seconds_between_nodes():
    """A ring over all devices has the node's link for itself; eight rings share it."""
    gradients = Collective("all-reduce", 200_000_000, 8, 1, over_data=True, with_rows=False)
    assert seconds(gradients, LINKS, node=8, nodes=4) == pytest.approx(1e-3 * 2 * 31 / 32)
    parts = Collective("all-reduce", 200_000_000, 1, 1, over_data=True, with_rows=False)
    assert seconds(parts, LINKS, node=8, nodes=4) == pytest.approx(8e-3 * 2 * 3 / 4)

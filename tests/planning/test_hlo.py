"""Reading of compiled programs: hand-written ones, and one whose collectives are known."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from imagen_jax.planning.hlo import read_shapes
from imagen_jax.planning.traffic import Collective, read_traffic


@pytest.mark.parametrize(
    "text, size, padded",
    [
        ("f32[3,5]", 60, 60),
        ("f32[3,5]{1,0}", 60, 60),
        ("f32[3,5]{1,0:T(8,128)}", 60, 8 * 128 * 4),
        ("f32[3,5]{0,1:T(8,128)}", 60, 8 * 128 * 4),
        ("bf16[2,16,130]{2,1,0:T(8,128)(2,1)}", 2 * 16 * 130 * 2, 2 * 16 * 256 * 2),
        ("bf16[2,16,130]{0,2,1:T(8,128)(2,1)}", 2 * 16 * 130 * 2, 16 * 136 * 128 * 2),
        ("pred[5]{0:T(512)}", 5, 512),
        ("f32[]{:T(128)}", 4, 4),
        ("s4[3]", 2, 2),
    ],
)
def test_bytes_of_an_array_with_and_without_padding(text, size, padded):
    (shape,) = read_shapes(text)
    assert (shape.bytes, shape.padded_bytes) == (size, padded)
    assert shape.in_memory


def test_types_of_tuples_and_on_chip_buffers():
    shapes = read_shapes("(f32[8,128]{1,0:T(8,128)S(1)}, /*index=1*/u32[], token[])")
    assert [shape.dims for shape in shapes] == [(8, 128), (), ()]
    assert [shape.in_memory for shape in shapes] == [False, True, True]
    assert [shape.bytes for shape in shapes] == [4096, 4, 0]


HEADER = "HloModule test, is_scheduled=true\n\n"

LOOPS = (
    HEADER
    + """%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (p: (s32[], f32[16])) -> (s32[], f32[16]) {
  %p = (s32[], f32[16]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[16]{0} get-tuple-element(%p), index=1
  %r = f32[16]{0} all-reduce(%x), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %t = (s32[], f32[16]{0}) tuple(%i, %r)
}

%condition (p.1: (s32[], f32[16])) -> pred[] {
  %bound = s32[] constant(7)
  %p.1 = (s32[], f32[16]{0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  ROOT %less = pred[] compare(%i.1, %bound), direction=LT
}

%outer (p.2: (s32[], f32[16])) -> (s32[], f32[16]) {
  %p.2 = (s32[], f32[16]{0}) parameter(0)
  ROOT %w = (s32[], f32[16]{0}) while(%p.2), condition=%condition, body=%body
}

%some (p.3: (s32[], f32[16])) -> pred[] {
  %p.3 = (s32[], f32[16]{0}) parameter(0)
  ROOT %unknown = pred[] custom-call(), custom_call_target="x"
}

ENTRY %main (x.1: (s32[], f32[16])) -> (s32[], f32[16]) {
  %x.1 = (s32[], f32[16]{0}) parameter(0)
  ROOT %w.1 = (s32[], f32[16]{0}) while(%x.1), condition=CONDITION, body=%outerCONFIG
}
"""
)


def test_what_is_inside_loops_is_multiplied_by_their_trip_counts():
    known = ', backend_config={"known_trip_count":{"n":"3"},"known_init_step":{"step":"1"}}'
    program = LOOPS.replace("=CONDITION", "=%some").replace("CONFIG", known)
    traffic = read_traffic(program, 8)
    # 64 bytes, four devices, twice 3/4 of it each.
    assert traffic.collectives == (Collective("all-reduce", 3 * 7, 3 * 7 * 96),)
    assert traffic.unknown_loops == 0
    # Read and written once each time.
    assert traffic.memory_bytes == 3 * (7 * 2 * 64 + 7 * 1 + 7 * 8) + 3


def test_a_loop_of_unknown_length_counts_once_and_is_reported():
    program = LOOPS.replace("=CONDITION", "=%some").replace("CONFIG", "")
    traffic = read_traffic(program, 8)
    assert traffic.collectives == (Collective("all-reduce", 7, 7 * 96),)
    assert traffic.unknown_loops == 1


def entry(lines: str, before: str = "") -> str:
    return f"{HEADER}{before}ENTRY %main (x: f32[8,16]) -> f32[8,16] {{\n{lines}}}\n"


@pytest.mark.parametrize(
    "groups, size",
    [
        ("{{0,1},{2,3},{4,5},{6,7}}", 2),
        ("[2,4]<=[8]", 4),
        ("[4,2]<=[2,4]T(1,0)", 2),
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", 4),
        ("mesh['axis_0'=2,'axis_1'=2,'axis_2'=2] {'axis_0','axis_2'}", 4),
        ("{}", 8),
    ],
)
def test_devices_of_a_collective_and_what_each_sends(groups, size):
    def sent(operation):
        line = f"  ROOT %r = f32[8,16] {operation}(%x), replica_groups={groups}, dimensions={{0}}\n"
        program = entry("  %x = f32[8,16]{1,0} parameter(0)\n" + line)
        ((kind, count, size),) = [
            (c.kind, c.count, c.bytes) for c in read_traffic(program, 8).collectives
        ]
        assert kind == operation.removesuffix("-start") and count == 1
        return size

    assert sent("all-gather") == 512 * (size - 1)
    assert sent("all-gather-start") == 512 * (size - 1)
    assert sent("reduce-scatter") == 512 * (size - 1) // size
    assert sent("all-reduce") == 2 * 512 * (size - 1) // size
    assert sent("all-to-all") == 512 * (size - 1) // size
    assert sent("collective-permute") == 512


def test_a_collective_in_a_fusion_and_one_to_other_slices():
    before = """%all-reduce-scatter.3 (a: f32[8,16]) -> f32[2,16] {
  %a = f32[8,16]{1,0} parameter(0)
  %r = f32[8,16]{1,0} all-reduce(%a), replica_groups={{0,1,2,3}}, to_apply=%add
  %i = s32[] constant(0)
  ROOT %s = f32[2,16]{1,0} dynamic-slice(%r, %i, %i), dynamic_slice_sizes={2,16}
}

"""
    program = entry(
        """  %x = f32[8,16]{1,0} parameter(0)
  %f = f32[2,16]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.3
  %token = token[] after-all()
  %send = (f32[2,16]{1,0}, u32[], token[]) send(%f, %token), channel_id=1, is_host_transfer=true
  %send-done = token[] send-done(%send), channel_id=1
  ROOT %copy = f32[8,16]{1,0} copy(%x)
""",
        before,
    )
    traffic = read_traffic(program, 8)
    assert traffic.collectives == (
        Collective("reduce-scatter", 1, 384),
        Collective("send", 1, 128),
    )
    assert traffic.sent(between_slices=False) == 384
    assert traffic.sent(between_slices=True) == 128


def test_of_two_branches_the_larger_counts():
    before = """%small (a: f32[8,16]) -> f32[8,16] {
  %a = f32[8,16]{1,0} parameter(0)
  ROOT %c = f32[8,16]{1,0} copy(%a)
}

%large (b: f32[8,16]) -> f32[8,16] {
  %b = f32[8,16]{1,0} parameter(0)
  ROOT %r = f32[8,16]{1,0} all-gather(%b), replica_groups=[4,2]<=[8], dimensions={0}
}

"""
    program = entry(
        "  %x = f32[8,16]{1,0} parameter(0)\n"
        "  %p = pred[] constant(true)\n"
        "  ROOT %r = f32[8,16]{1,0} conditional(%p, %x, %x), "
        "branch_computations={%small, %large}\n",
        before,
    )
    assert read_traffic(program, 8).collectives == (Collective("all-gather", 1, 512),)


def test_fusions_that_use_slices_of_their_operands_move_slices():
    before = """%fused (a: f32[100,16], b: f32[100,16], i: s32[]) -> (f32[100,16], f32[1,16]) {
  %a = f32[100,16]{1,0} parameter(0)
  %b = f32[100,16]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %z = s32[] constant(0)
  %slice = f32[1,16]{1,0} dynamic-slice(%a, %i, %z), dynamic_slice_sizes={1,16}
  %twice = f32[1,16]{1,0} add(%slice, %slice)
  %update = f32[100,16]{1,0} dynamic-update-slice(%b, %twice, %i, %z)
  ROOT %t = (f32[100,16]{1,0}, f32[1,16]{1,0}) tuple(%update, %twice)
}

"""
    program = entry(
        """  %x = f32[100,16]{1,0} parameter(0)
  %y = f32[100,16]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %f = (f32[100,16]{1,0}, f32[1,16]{1,0}) fusion(%x, %y, %i), kind=kLoop, calls=%fused
""",
        before,
    )
    # 64 bytes and the index are read, 64 bytes are written twice.
    assert read_traffic(program, 1).memory_bytes == 64 + 4 + 2 * 64
    whole = program.replace("dynamic-slice(%a, %i, %z)", "copy(%a)")
    assert read_traffic(whole, 1).memory_bytes == 6400 + 4 + 2 * 64


def test_what_stays_on_the_chip_is_no_memory_traffic():
    lines = """  %x = f32[8,128]{1,0:T(8,128)} parameter(0)
  %start = (f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)}, u32[]) copy-start(%x)
  %done = f32[8,128]{1,0:T(8,128)S(1)} copy-done(%start)
  ROOT %y = f32[8,128]{1,0:T(8,128)} negate(%done)
"""
    assert read_traffic(entry(lines), 1).memory_bytes == 4096 + 4096


def test_a_program_for_eight_devices_whose_collectives_are_known():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    whole = NamedSharding(mesh, PartitionSpec())
    rows = NamedSharding(mesh, PartitionSpec("data"))
    x = jax.ShapeDtypeStruct((8, 64), jnp.float32, sharding=rows)
    w = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=whole)

    def step(w, x):
        def one(w, _):
            # Each step needs the sum of the gradients over all devices.
            return w - jax.grad(lambda w: jnp.sum(jnp.tanh(x @ w)))(w), None

        return jax.lax.scan(one, w, None, length=5)[0]

    compiled = jax.jit(step, out_shardings=whole).lower(w, x).compile()
    traffic = read_traffic(compiled.as_text(), 8)
    assert traffic.unknown_loops == 0
    assert traffic.collectives == (Collective("all-reduce", 5, 5 * 2 * (64 * 32 * 4) * 7 // 8),)


def test_memory_traffic_is_what_xla_counts_where_nothing_loops():
    x = jax.ShapeDtypeStruct((64, 96), jnp.float32)
    w = jax.ShapeDtypeStruct((4, 96, 96), jnp.float32)

    def network(w, x):
        for i in range(4):
            x = jnp.tanh(x @ w[i]) + x[:, ::-1]
        return jnp.sum(x**2, axis=0)

    compiled = jax.jit(jax.grad(lambda w, x: network(w, x).sum())).lower(w, x).compile()
    counted = compiled.cost_analysis()["bytes accessed"]
    assert read_traffic(compiled.as_text(), 1).memory_bytes == counted

"""Topologies, the estimate, the cache and the text of a plan."""

import dataclasses
import math
from types import SimpleNamespace

import jax
import pytest

from imagen_jax.config import load_config
from imagen_jax.errors import UserError
from imagen_jax.planning import cache, report
from imagen_jax.planning.estimate import estimate
from imagen_jax.planning.programs import Facts, needed_bytes
from imagen_jax.planning.report import Plan, describe, remedies, to_json_dict
from imagen_jax.planning.topology import Topology, parse_topology
from imagen_jax.planning.traffic import Collective, Traffic

GIB = 2**30


@pytest.mark.parametrize(
    "text, chips, slices, rings, links",
    [
        ("v5e:8x8", 64, 1, (False, False), 2),
        ("v5e:8x16", 128, 1, (False, True), 3),
        ("v5e:16x16", 256, 1, (True, True), 4),
        ("v5e:16x16*2", 512, 2, (True, True), 4),
        ("v6e:8x8", 64, 1, (False, False), 2),
        ("v5e:1x1", 1, 1, (False, False), 1),
        ("v4:8x8x4", 256, 1, (True, True, True), 6),
        ("v4:2x2x4", 16, 1, (False, False, False), 3),
        ("v5p:2x2x1", 4, 1, (False, False, False), 2),
    ],
)
def test_names_of_slices(text, chips, slices, rings, links):
    topology = parse_topology(text)
    assert topology.num_chips == chips
    assert topology.num_slices == slices
    assert topology.rings == rings
    assert topology.ici_bandwidth == links * topology.chip.ici_link


@pytest.mark.parametrize(
    "text, message",
    [
        ("v5e", "write a version and the chips along each axis"),
        ("v5e:8,8", "write a version"),
        ("v5e:8x8*", "write a version"),
        ("v3:8x8", "version v3 is not one of v4, v5e, v5p, v6e"),
        ("v4:8x8", "the network of v4 has 3 axes, for example v4:4x4x8"),
        ("v5e:4x4x4", "the network of v5e has 2 axes"),
        ("v5e:8x0", "at least 1"),
        ("v5e:8x8*0", "at least 1"),
    ],
)
def test_wrong_names_are_refused_with_the_remedy(text, message):
    with pytest.raises(UserError, match=message.replace("*", r"\*")):
        parse_topology(text)


def test_the_local_devices():
    topology = parse_topology("local")
    assert (topology.num_chips, topology.chip, topology.version) == (8, None, "")


def test_local_chips_that_are_known_with_the_memory_that_the_runtime_gives_out(monkeypatch):
    gpu = SimpleNamespace(
        device_kind="NVIDIA H100 80GB HBM3",
        process_index=0,
        memory_stats=lambda: {"bytes_limit": 60 * 10**9},
    )
    monkeypatch.setattr(jax, "devices", lambda: [gpu, gpu])
    topology = parse_topology("local")
    assert (topology.num_chips, topology.num_slices) == (2, 1)
    assert (topology.chip.hbm, topology.chip.bf16_flops) == (60e9, 989e12)
    # All links of a card together.
    assert topology.ici_bandwidth == 450e9


V5E = parse_topology("v5e:4x4*2")
TRAFFIC = Traffic(
    (Collective("all-gather", 3, 6 * 10**9), Collective("send", 1, 10**9)), 4 * 10**9, 0
)


def test_the_estimate_is_the_longest_of_three_times():
    have = estimate(V5E, TRAFFIC, model_flops=3e15, executed_flops=4e15, efficiency=0.5)
    # 32 chips at half of 197 TFLOP/s; 819 GB/s; two open axes of 50 GB/s; 3.125 GB/s to others.
    assert have.compute == pytest.approx(4e15 / (32 * 197e12 * 0.5))
    assert have.memory == pytest.approx(4 / 819)
    assert have.network == pytest.approx(6 / 100 + 1 / 3.125)
    assert have.compute > have.network > have.memory
    assert (have.bound, have.seconds) == ("compute", have.compute)
    assert have.mfu == pytest.approx(0.5 * 3 / 4)

    slow = estimate(V5E, TRAFFIC, model_flops=3e14, executed_flops=4e14, efficiency=0.5)
    assert (slow.bound, slow.seconds) == ("network", slow.network)
    assert slow.mfu == pytest.approx(3e14 / (32 * 197e12 * slow.network))


def test_nothing_is_estimated_for_a_device_that_is_not_known():
    topology = parse_topology("local")
    assert estimate(topology, TRAFFIC, model_flops=1.0, executed_flops=1.0) is None


def test_what_the_compiler_says_is_needed():
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (149.14G) exceeds available HBM (30.75G)."
    )
    assert needed_bytes(message) == pytest.approx(149.14 * GIB)
    assert needed_bytes("Used 19.50G of 15.75G hbm.") == pytest.approx(19.5 * GIB)
    assert needed_bytes("something else") is None


FACTS = Facts(
    program="train",
    mesh={"data": 4, "fsdp": 8, "tensor": 1},
    parameters=1000,
    rows=8,
    model_flops=3 * 10**15,
    executed_flops=4 * 10**15,
    state_bytes=4 * GIB,
    batch_bytes=GIB,
    argument_bytes=6 * GIB,
    peak_bytes=10 * GIB,
    code_bytes=GIB,
    compile_seconds=12.0,
)


def plan(facts: Facts = FACTS, topology: Topology = V5E, **changes) -> Plan:
    fits = not facts.too_large
    expected = estimate(topology, TRAFFIC, model_flops=3e15, executed_flops=4e15)
    values = {
        "stage_name": "base",
        "stage": load_config("configs/tiny.py").stages["base"],
        "topology": topology,
        "facts": facts,
        "traffic": TRAFFIC if fits else None,
        "estimate": expected if fits else None,
        "effort": "low",
        "compiler": "libtpu 1",
        "from_cache": False,
    }
    return Plan(**values | changes)


def test_parts_of_the_memory_add_up():
    have = to_json_dict(plan())
    memory = have["memory"]
    parts = ("state", "batch", "padding", "temporary", "code")
    assert sum(memory[f"{part}_bytes"] for part in parts) == memory["needed_bytes"] == 11 * GIB
    assert have["fits"] is True and "fits         yes" in describe(plan())
    assert have["images_per_second"] == pytest.approx(8 / have["estimate"]["seconds"])
    # The tiny stage runs for 20 steps.
    assert have["days"] == pytest.approx(20 * have["estimate"]["seconds"] / 86400)


def test_a_plan_that_does_not_fit_says_what_helps():
    large = plan(dataclasses.replace(FACTS, peak_bytes=15 * GIB))
    assert large.fits is False
    text = describe(large)
    assert "16.0 GiB needed of 15.8 GiB a chip" in text
    assert "larger --config.mesh.fsdp (now 8; the state takes 25% of a chip)" in text
    assert "--config.stages.base.model.remat=\"('full','full',)\"" in text
    # One picture a chip cannot become fewer.
    assert "accumulate" not in text
    more = dataclasses.replace(FACTS, peak_bytes=15 * GIB, rows=64)
    assert any(
        "now 2 a chip): --config.stages.base.train.accumulate=2" in x for x in remedies(plan(more))
    )
    cut = dataclasses.replace(more, mesh={"data": 1, "fsdp": 32, "tensor": 1})
    assert not any("mesh.fsdp" in line for line in remedies(plan(cut)))


def test_a_program_that_the_compiler_refuses_for_its_size():
    refused = dataclasses.replace(
        FACTS,
        argument_bytes=None,
        peak_bytes=None,
        code_bytes=None,
        too_large="RESOURCE_EXHAUSTED: ...",
        needed_bytes=149.14 * GIB,
    )
    have = to_json_dict(plan(refused))
    assert have["fits"] is False and have["collectives"] is None and have["estimate"] is None
    assert "149.1 GiB needed at least of 15.8 GiB" in describe(plan(refused))


def test_an_unknown_device_gets_no_verdict():
    have = plan(topology=parse_topology("local"), estimate=None)
    assert have.fits is None and to_json_dict(have)["images_per_second"] is None
    assert "unknown" in describe(have)


@pytest.fixture
def config(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return load_config("configs/tiny.py")


def test_programs_are_kept_and_damaged_files_are_not_read(config):
    assert cache.load("a") is None
    cache.store("a", FACTS, "HloModule")
    assert cache.load("a") == (FACTS, "HloModule")
    kept = cache.cache_directory() / "a.hlo.gz"
    kept.write_bytes(kept.read_bytes()[:-4])
    assert cache.load("a") is None
    cache.store("a", FACTS, "HloModule")
    (cache.cache_directory() / "a.json").write_text('{"of": "another version"}')
    assert cache.load("a") is None


def test_the_key_changes_with_all_that_the_program_depends_on(config, monkeypatch):
    def key(config=config, program="train", name="base", dim=8, topology="local", effort="low"):
        return cache.plan_key(program, config, name, dim, parse_topology(topology), effort)

    def changed(stage_field, **values):
        stage = config.stages["base"]
        part = dataclasses.replace(getattr(stage, stage_field), **values)
        stage = dataclasses.replace(stage, **{stage_field: part})
        return dataclasses.replace(config, stages=config.stages | {"base": stage})

    assert key() == key()
    # Neither sampling settings nor the cascade's name and seed change the train program.
    assert key() == key(dataclasses.replace(config, name="x", seed=3))
    assert key() == key(changed("sample", num_steps=9))
    keys = [
        key(),
        key(program="sample"),
        key(name="sr16"),
        key(dim=9),
        key(effort="full"),
        key(changed("train", batch_size=16)),
        key(changed("model", dropout=0.5)),
        key(dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, fsdp=2))),
        key(changed("sample", num_steps=9), program="sample"),
    ]
    monkeypatch.setattr(cache, "compiler_version", lambda topology: "9.9")
    keys += [key(), key(topology="v5e:8x8"), key(topology="v5e:8x8*2"), key(topology="v6e:8x8")]
    monkeypatch.setattr(cache, "sources_hash", lambda: "other")
    keys.append(key())
    assert len(set(keys)) == len(keys)


def test_infinite_bandwidths_are_those_of_one_device():
    assert math.isinf(parse_topology("local").ici_bandwidth)


def test_a_program_that_edits_leave_as_it_was_is_not_compiled_again(config, monkeypatch):
    compiled = []

    def compile_program(facts, lowered, topology, effort):
        compiled.append(effort)
        return dataclasses.replace(facts, peak_bytes=9, argument_bytes=5, code_bytes=1), ""

    def lower_program(program, config, name, text_dim, topology):
        text = f"program for {config.stages[name].train.batch_size} pictures"
        return FACTS, SimpleNamespace(as_text=lambda: text)

    monkeypatch.setattr(report, "compile_program", compile_program)
    monkeypatch.setattr(report, "lower_program", lower_program)

    def plan(config=config, effort="low"):
        return report.make_plan(
            "train", config, "sr16", 8, parse_topology("local"), effort=effort
        ).from_cache

    assert not plan() and plan()
    monkeypatch.setattr(cache, "sources_hash", lambda: "an edit")
    assert plan() and compiled == ["low"]
    assert not plan(effort="full")
    stage = config.stages["sr16"]
    train = dataclasses.replace(stage.train, batch_size=16)
    stages = config.stages | {"sr16": dataclasses.replace(stage, train=train)}
    assert not plan(dataclasses.replace(config, stages=stages))
    assert compiled == ["low", "full", "low"]

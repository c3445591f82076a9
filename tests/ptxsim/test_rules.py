"""Rules and instructions that CUDA C++ does not come near, in kernels written as PTX.

Each rule is a kernel with one place `{}` in it: what breaks the rule there, and what keeps it.
"""

from dataclasses import dataclass

import numpy as np
import pytest
from checks import is_reported, stays_silent
from ptxsim import InOut, Module, Simulator, SimulatorError

# %o is a buffer of 128 words, %n a parameter, 7; shared memory of 4 KiB begins at %m, where mbarriers are
# made; %t is the thread, %mine its word of the buffer, %s its word of shared memory.
KERNEL = """.version 8.6
.target sm_90a
.address_size 64
.visible .entry rule(.param .u64 out, .param .u32 n)
.maxntid 128, 1, 1
{{
.reg .pred %p<8>;
.reg .b32 %r<16>, %t, %s, %n, %a, %m;
.reg .b64 %d<8>, %o, %mine;
.shared .align 128 .b8 memory[4096];
ld.param.u64 %o, [out];
ld.param.u32 %n, [n];
mov.u32 %t, %tid.x;
mov.u32 %m, memory;
mad.lo.u32 %s, %t, 4, %m;
add.u32 %s, %s, 128;
mad.wide.u32 %mine, %t, 4, %o;
{body}
ret;
}}
"""
# Thread 0 makes an mbarrier at the start of shared memory for one arrival, and all know of it.
BARRIER = """
setp.eq.u32 %p7, %t, 0;
@%p7 mbarrier.init.shared.b64 [%m], 1;
@%p7 fence.mbarrier_init.release.cluster;
bar.sync 0;
"""


@dataclass
class Rule:
    kind: str
    says: str
    body: str
    broken: str
    kept: str
    threads: int = 32
    cluster: int = 1


def run(body: str, threads: int = 32, cluster: int = 1, words: int = 128, **options: int) -> np.ndarray:
    out = np.zeros(words + 4, np.uint32)
    out = out[-out.ctypes.data % 16 // 4 :][:words]  # bulk copies need 16 bytes of alignment
    with Simulator(**options) as sim:
        grid = cluster
        module = Module(KERNEL.format(body=body))
        sim.launch(module, "rule", grid, threads, [InOut(out), 7], cluster=cluster)
        sim.run()
    return out


RULES = {
    "param_past_end": Rule(
        "PARAM_OOB",
        "4 bytes at offset 12 of 12 bytes of parameters",
        "mov.b64 %d0, n; cvta.param.u64 %d0, %d0; ld.u32 %r0, [%d0+{}]; st.global.u32 [%mine], %r0;",
        "4",
        "0",
    ),
    "param_written": Rule(
        "PARAM_RO",
        "write to a kernel parameter",
        "mov.b64 %d0, n; cvta.param.u64 %d0, %d0; st.u32 [{}], %t;",
        "%d0",
        "%mine",
    ),
    "branch_index": Rule(
        "BRANCH",
        "lane 0: index 2 of 2 branch targets",
        "mov.u32 %r0, {}; targets: .branchtargets one, two; brx.idx %r0, targets;\n"
        "one: ret;\ntwo: st.global.u32 [%mine], %t;",
        "2",
        "1",
    ),
    "registers_given_back_twice": Rule(
        "SETMAXNREG",
        "setmaxnreg.dec to 48 from 40",
        "setmaxnreg.dec.sync.aligned.u32 40; setmaxnreg.{}.sync.aligned.u32 48;",
        "dec",
        "inc",
        threads=128,
    ),
    "registers_taken_downwards": Rule(
        "SETMAXNREG",
        "setmaxnreg.inc to 32 from 40",
        "setmaxnreg.dec.sync.aligned.u32 40; setmaxnreg.inc.sync.aligned.u32 {};",
        "32",
        "40",
        threads=128,
    ),
    "reduction_by_bulk_copy": Rule(
        "UNSUPPORTED",
        "does not execute this instruction",
        "st.shared.u32 [%s], %t; fence.proxy.async; bar.warp.sync 0xffffffff;\n"
        "setp.eq.u32 %p0, %t, 0; add.u32 %r0, %m, 128;\n"
        "@%p0 cp{}.async.bulk.global.shared::cta.bulk_group{} [%o], [%r0], 128;\n"
        "@%p0 cp.async.bulk.commit_group; @%p0 cp.async.bulk.wait_group 0;",
        ".reduce|.add.u32",
        "|",
    ),
    "update_of_nothing": Rule(
        "UNINIT",
        "updates shared offset",
        "{} atom.shared.add.u32 %r0, [%s], 1;",
        "",
        "st.shared.u32 [%s], %t;",
    ),
    "read_of_a_barrier": Rule(
        "MBAR_MISUSE",
        "reads the mbarrier at shared offset 4",
        BARRIER + "st.shared.u32 [%s], %t; ld.shared.u32 %r0, [{}];",
        "%m+4",
        "%s",
    ),
    "arrival_completes": Rule(
        "MBAR_MISUSE",
        "an arrival with .noComplete completes the phase",
        "setp.eq.u32 %p0, %t, 0; @%p0 mbarrier.init.shared.b64 [%m], 2;\n"
        "@%p0 mbarrier.arrive.noComplete.shared.b64 %d0, [%m], {};",
        "2",
        "1",
    ),
    "transaction_count_too_large": Rule(
        "MBAR_MISUSE",
        "the transaction count of the mbarrier at shared offset 0 leaves its range",
        BARRIER + "@%p7 mbarrier.expect_tx.relaxed.cta.shared.b64 [%m], 1048000;\n"
        "@%p7 mbarrier.expect_tx.relaxed.cta.shared.b64 [%m], {};\n"
        "@%p7 mbarrier.complete_tx.relaxed.cta.shared.b64 [%m], 1048000;\n"
        "@%p7 mbarrier.complete_tx.relaxed.cta.shared.b64 [%m], {};",
        "1000",
        "16",
    ),
    "bulk_copy_of_misaligned_memory": Rule(
        "TMA_ALIGN",
        "must be aligned to 16 bytes",
        BARRIER + "add.u32 %r0, %m, 128;\n"
        "@%p7 mbarrier.arrive.expect_tx.shared.b64 _, [%m], 64;\n"
        "@%p7 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r0], [%o+{}], 64, [%m];\n"
        "wait: mbarrier.try_wait.parity.shared.b64 %p0, [%m], 0; @!%p0 bra wait;",
        "8",
        "16",
    ),
    "bulk_copy_to_misaligned_shared_memory": Rule(
        "TMA_ALIGN",
        "the shared address of this copy is not aligned to 16 bytes",
        "mad.lo.u32 %r1, %t, 4, %m; st.shared.u32 [%r1+128], %t; st.shared.u32 [%r1+256], %t;\n"
        "fence.proxy.async; bar.warp.sync 0xffffffff; setp.eq.u32 %p0, %t, 0;\n"
        "@%p0 cp.async.bulk.global.shared::cta.bulk_group [%o], [%m+{}], 64;\n"
        "@%p0 cp.async.bulk.commit_group; @%p0 cp.async.bulk.wait_group 0;",
        "136",
        "144",
    ),
    "bulk_store_never_committed": Rule(
        "BULK_EXIT",
        "lane 0 exits with a bulk store it never committed",
        "st.shared.u32 [%s], %t; fence.proxy.async; bar.warp.sync 0xffffffff; setp.eq.u32 %p0, %t, 0;\n"
        "@%p0 cp.async.bulk.global.shared::cta.bulk_group [%o], [%m+128], 64;\n"
        "{} @%p0 cp.async.bulk.wait_group 0;",
        "",
        "@%p0 cp.async.bulk.commit_group;",
    ),
    "asynchronous_copy_misaligned": Rule(
        "MISALIGNED",
        "cp.async of 16 bytes",
        "and.b32 %r0, %t, 0; mad.lo.u32 %r1, %t, 16, %m; mad.wide.u32 %d0, %t, 16, %o;\n"
        "cp.async.cg.shared.global [%r1+{}], [%d0], 16; cp.async.wait_all;",
        "264",
        "256",
    ),
    "matrix_in_global_memory": Rule(
        "SHARED_OOB",
        "is not in shared memory",
        "mul.wide.u32 %d1, %t, 16; cvt.u64.u32 %d2, %m; cvta.shared.u64 %d2, %d2;\n"
        "add.u64 %d2, %d2, %d1; add.u64 %d3, %o, %d1; mov.b64 %d4, 0;\n"
        "st.v2.b64 [%d2], {{%d4, %d4}}; bar.warp.sync 0xffffffff;\n"
        "ldmatrix.sync.aligned.m8n8.x1.b16 {{%r0}}, [{}]; st.global.u32 [%mine], %r0;",
        "%d3",
        "%d2",
    ),
    "cluster_address_of_no_cta": Rule(
        "SHARED_OOB",
        "names no CTA of the cluster",
        "st.shared.u32 [%s], %t; mov.u32 %r0, %cluster_ctarank; mapa.shared::cluster.u32 %r1, %s, %r0;\n"
        "add.u32 %r1, %r1, {}; ld.shared::cluster.u32 %r2, [%r1];",
        "0x4000000",
        "0",
        cluster=2,
    ),
    "own_address_of_another_cta": Rule(
        "SHARED_OOB",
        "which is another CTA's",
        "st.shared.u32 [%s], %t; mov.u32 %r0, %cluster_ctarank; xor.b32 %r0, %r0, 1;\n"
        "mapa.shared::cluster.u32 %r1, %s, %r0;\n"
        "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned; ld.shared::{}.u32 %r2, [%r1];\n"
        "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;",
        "cta",
        "cluster",
        cluster=2,
    ),
    "load_into_one_cta_barrier_in_another": Rule(
        "MBAR_MISUSE",
        "must lie in the CTA it loads into",
        BARRIER + "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;\n"
        "mov.u32 %r0, %cluster_ctarank; xor.b32 %r0, %r0, {}; add.u32 %r1, %m, 128;\n"
        "mapa.shared::cluster.u32 %r1, %r1, %r0;\n"
        "@%p7 mbarrier.arrive.expect_tx.shared.b64 _, [%m], 64;\n"
        "@%p7 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%o], 64, [%m];\n"
        "wait: mbarrier.try_wait.parity.shared.b64 %p0, [%m], 0; @!%p0 bra wait;",
        "1",
        "0",
        cluster=2,
    ),
}


def filled(rule: Rule, what: str) -> str:
    """The rule's kernel; `a|b` goes to its two places, in this order."""
    places = rule.body.replace("{{", "").count("{}")
    return rule.body.format(*(what.split("|") if "|" in what else [what] * places))


@pytest.mark.parametrize("name", RULES)
def test_a_broken_rule_is_reported(name):
    rule = RULES[name]
    broken = filled(rule, rule.broken)
    is_reported(
        lambda **options: run(broken, rule.threads, rule.cluster, **options),
        rule.kind,
        rule.says,
        "[kernel rule cta (",
        "at PTX line",
    )


@pytest.mark.parametrize("name", RULES)
def test_a_kept_rule_is_silent(name):
    rule = RULES[name]
    kept = filled(rule, rule.kept)
    stays_silent(lambda **options: run(kept, rule.threads, rule.cluster, **options))


def test_registers_belong_to_warpgroups():
    body = "setmaxnreg.dec.sync.aligned.u32 40;"
    is_reported(lambda **options: run(body, 96, **options), "SETMAXNREG", "whole warpgroups of 4")
    stays_silent(lambda **options: run(body, 128, **options))
    for count in ("20", "44", "264"):
        with pytest.raises(SimulatorError, match=r"PARSE: .*multiple of 8 in 24\.\.256"):
            run(body.replace("40", count), 128)


@pytest.mark.parametrize("barriers", [48, 49])
def test_loads_complete_on_at_most_48_barriers(barriers):
    steps = [
        f"@%p7 mbarrier.init.shared.b64 [%m+{8 * i}], 1; @%p7 fence.mbarrier_init.release.cluster;\n"
        f"@%p7 mbarrier.arrive.expect_tx.shared.b64 _, [%m+{8 * i}], 16;\n"
        f"@%p7 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%m+{1024 + 16 * i}], [%o], "
        f"16, [%m+{8 * i}];\n"
        f"wait{i}: mbarrier.try_wait.parity.shared.b64 %p0, [%m+{8 * i}], 0; @!%p0 bra wait{i};\n"
        for i in range(barriers)
    ]
    body = "setp.eq.u32 %p7, %t, 0; @!%p7 bra end;\n" + "".join(steps) + "end:"
    if barriers > 48:
        is_reported(lambda **options: run(body, **options), "UNSUPPORTED", "more than 48 mbarriers")
    else:
        run(body)


def test_division_by_zero_where_registers_are_not_tracked():
    body = "xor.b32 %r0, %n, {}; div.u32 %r1, %t, %r0; st.global.u32 [%mine], %r1;"
    is_reported(lambda **options: run(body.format(7), registers=0, **options), "DIV0", "by zero")
    stays_silent(lambda **options: run(body.format(6), registers=0, **options))


def test_shared_memory_in_flight_is_not_touched():
    wait = "wait: mbarrier.try_wait.parity.shared.b64 %p0, [%m], 0; @!%p0 bra wait;"
    body = (
        BARRIER
        + """st.shared.u32 [%s], %t; fence.proxy.async; bar.sync 0; add.u32 %r0, %m, 128;
        @%p7 mbarrier.arrive.expect_tx.shared.b64 _, [%m], 128;
        @%p7 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r0], [%o], 128, [%m];
        {} {} {}"""
    )
    for touch, says in (("ld.shared.u32 %r1, [%s];", "reads"), ("st.shared.u32 [%s], %r0;", "writes")):
        early, late = body.format("bar.sync 0;", touch, wait), body.format("", wait, touch)
        is_reported(
            lambda *, kernel=early, **options: run(kernel, async_delay=10**6, **options), "ASYNC_RACE", says
        )
        stays_silent(lambda *, kernel=late, **options: run(kernel, **options))


# ---- instructions that only PTX has: body, and what the lanes of a warp hold in %r0 afterwards

LANE = np.arange(32)
INSTRUCTIONS = {
    "mov.u32 %r0, %laneid;": LANE,
    "mov.u32 %r0, %warpid;": 0 * LANE,
    "mov.u32 %r0, %nwarpid;": 0 * LANE + 1,
    "mov.u32 %r0, %lanemask_eq;": 1 << LANE,
    "mov.u32 %r0, %lanemask_lt;": (1 << LANE) - 1,
    "mov.u32 %r0, %lanemask_le;": (2 << LANE) - 1,
    "mov.u32 %r0, %lanemask_gt;": 2**32 - (2 << LANE),
    "mov.u32 %r0, %lanemask_ge;": 2**32 - (1 << LANE),
    "mov.u32 %r0, %tid.z;": 0 * LANE,
    "mov.u32 %r0, %ntid.z;": 0 * LANE + 1,
    "mov.u32 %r0, %nctaid.x;": 0 * LANE + 1,
    "mov.u32 %r0, %nctaid.z;": 0 * LANE + 1,
    "mov.u32 %r0, %dynamic_smem_size;": 0 * LANE,
    "activemask.b32 %r0;": 0 * LANE + 2**32 - 1,
    "and.b32 %r1, %t, 1; setp.eq.u32 %p0, %r1, 0; mov.u32 %r0, 0; @%p0 activemask.b32 %r0;": np.where(
        LANE & 1, 0, 0x55555555
    ),
    "add.u32 %r1, %t, 32; redux.sync.and.b32 %r0, %r1, 0xffffffff;": 0 * LANE + 32,
    "redux.sync.or.b32 %r0, %t, 0xffffffff;": 0 * LANE + 31,
    "setp.lt.u32 %p0, %t, 9; vote.sync.uni.pred %p1, %p0, 0xffffffff; selp.u32 %r0, 1, 2, %p1;": 0 * LANE + 2,
    "setp.lt.u32 %p0, %t, 99; vote.sync.uni.pred %p1, %p0, 0xffffffff; selp.u32 %r0, 1, 2, %p1;": 0 * LANE
    + 1,
    "st.shared.u32 [%s], %t; atom.shared.dec.u32 %r1, [%s], 5; ld.shared.u32 %r0, [%s];": np.where(
        (LANE == 0) | (LANE > 5), 5, LANE - 1
    ),
    "mov.u32 %r1, %clock; mov.u32 %r2, %clock; setp.ge.u32 %p0, %r2, %r1; selp.u32 %r0, 1, 0, %p0;": 0 * LANE
    + 1,
    "mov.u64 %d0, %globaltimer; mov.u64 %d1, %clock64; mov.u32 %r0, 3;": 0 * LANE + 3,
    "getctarank.shared::cluster.u32 %r0, %m;": 0 * LANE,
}


@pytest.mark.parametrize("body", INSTRUCTIONS)
def test_instructions_beyond_cuda(body):
    for seed in range(4):
        out = run(body + " st.global.u32 [%mine], %r0;", seed=seed)
        np.testing.assert_array_equal(out[:32], INSTRUCTIONS[body].astype(np.uint32))


def test_one_lane_is_elected():
    """Any lane of the mask, the same for all of them, and predicates agree with the register."""
    body = """elect.sync %r1|%p0, 0xff00ff00; selp.u32 %r2, 32, 0, %p0; add.u32 %r0, %r1, %r2;
              st.global.u32 [%mine], %r0;"""
    body = "and.b32 %r3, %t, 8; setp.eq.u32 %p1, %r3, 0; @%p1 bra end;\n" + body + "end:"
    elected = set()
    for seed in range(20):
        lanes = run(body, seed=seed)[:32].astype(int)
        chosen = lanes[8] % 32
        assert chosen & 8
        np.testing.assert_array_equal(lanes, np.where(LANE & 8, chosen + 32 * (chosen == LANE), 0))
        elected.add(chosen)
    assert len(elected) > 4


def test_lanes_of_a_partial_mask_are_ordered_among_themselves():
    """bar.warp.sync of some lanes orders their accesses, and not those of the others."""
    body = """setp.lt.u32 %p0, %t, 16; xor.b32 %r1, %t, {}; mad.lo.u32 %r2, %r1, 4, %m;
              st.shared.u32 [%s], %t; @!%p0 bra end; bar.warp.sync 0xffff; ld.shared.u32 %r0, [%r2+128];
              st.global.u32 [%mine], %r0;
              end:"""
    stays_silent(lambda **options: run(body.format(1), **options))
    np.testing.assert_array_equal(run(body.format(1))[:16], np.arange(16) ^ 1)
    is_reported(lambda **options: run(body.format(16), **options), {"RACE", "UNINIT"})


def test_a_copy_from_shared_memory_to_another_cta():
    body = (
        BARRIER
        + """mov.u32 %r0, %cluster_ctarank; xor.b32 %r1, %r0, 1;
        mad.lo.u32 %r2, %r0, 100, %t; st.shared.u32 [%s], %r2; fence.proxy.async;
        @%p7 mbarrier.arrive.expect_tx.shared.b64 _, [%m], 128;
        barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
        add.u32 %r3, %m, 128; add.u32 %r4, %m, 1024;
        mapa.shared::cluster.u32 %r4, %r4, %r1; mapa.shared::cluster.u32 %r5, %m, %r1;
        @%p7 cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%r4], [%r3], 128, [%r5];
        wait: mbarrier.try_wait.parity.shared.b64 %p0, [%m], 0; @!%p0 bra wait;
        ld.shared.u32 %r6, [%s+896]; mad.wide.u32 %d0, %r0, 128, %mine; st.global.u32 [%d0], %r6;
        barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;"""
    )
    stays_silent(lambda **options: run(body, cluster=2, **options))
    np.testing.assert_array_equal(run(body, cluster=2)[:64], np.concatenate([LANE + 100, LANE]))

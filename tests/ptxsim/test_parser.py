"""The parser: what a module becomes, and what it refuses, always with the line and the instruction."""

import re

import pytest
from alu import Refused, describe

HEADER = ".version 9.0\n.target sm_90a\n.address_size 64\n"
REGISTERS = (
    ".reg .pred p, q; .reg .b16 h, h1; .reg .b32 r, r1, r2, r3, r4; .reg .b64 d, d1, d2; "
    ".shared .align 8 .b8 area[64]; "
)


def kernel(body: str, parameters: str = "", directives: str = "", before: str = "") -> str:
    return f"{HEADER}{before}\n.visible .entry k({parameters})\n{directives}\n{{\n{body}\n}}\n"


def decode(body: str, **parts: str) -> dict:
    return describe(kernel(body, **parts))["kernels"][0]


def opcodes(body: str, **parts: str) -> list[str]:
    return [instruction["opcode"] for instruction in decode(body, **parts)["code"]]


def value_of(k: dict, slot: int) -> int:
    return dict(map(tuple, k["constants"]))[slot]


# ---------------------------------------------------------------- modules


def test_module_and_parameters():
    module = describe(
        kernel(
            "ret;",
            parameters=".param .u64 .ptr .global .align 16 a, .param .u32 n, .param .align 64 .b8 map[128], "
            ".param .u8 flag, .param .f64 x",
            directives=".maxntid 128, 2\n.minnctapersm 2\n.maxnreg 64\n.reqnctapercluster 2, 1, 1\n"
            ".explicitcluster",
        )
    )
    assert (module["version"], module["target"]) == ("9.0", "sm_90a")
    (k,) = module["kernels"]
    assert k["parameters"] == [["a", 0, 8], ["n", 8, 4], ["map", 64, 128], ["flag", 192, 1], ["x", 200, 8]]
    assert k["parameter_bytes"] == 208
    assert (k["max_threads"], k["cluster"]) == ([128, 2, 1], [2, 1, 1])


def test_comments_debug_lines_and_sections():
    text = kernel(
        "// a comment; with { braces\n.loc 1 5 3, function_name $L__info_string0, inlined_at 1 2 3\n"
        '/* another\n one */ .pragma "nounroll";\nret; /* } */',
        before='.file 1 "some path/with { brace.cu", 12, 34\n.section .debug_str { .b8 1, 2 }',
    )
    (k,) = describe(text)["kernels"]
    assert [i["opcode"] for i in k["code"]] == ["Return", "Return"]
    assert k["code"][0]["line"] == text[: text.index("ret;")].count("\n") + 1


def test_variables_and_their_initialisers():
    module = describe(
        HEADER
        + ".const .align 4 .b8 bytes[6] = {1, 2, 255};\n"
        + ".visible .global .align 4 .u32 words[2][2] = {{1, 0x10}, {4294967295, 7}};\n"
        + ".global .align 8 .u64 pointers[2] = {generic(words), words+8};\n"
        + ".global .align 4 .f32 one = 0f3F800000;\n.weak .global .align 16 .b8 zeros[16];\n"
    )
    variables = {v["name"]: v for v in module["variables"]}
    assert variables["bytes"]["data"] == [1, 2, 255, 0, 0, 0]
    assert variables["bytes"]["constant"] == 1
    words = variables["words"]
    assert bytes(words["data"]) == b"".join(n.to_bytes(4, "little") for n in (1, 16, 2**32 - 1, 7))
    start = words["address"]
    assert bytes(variables["pointers"]["data"]) == start.to_bytes(8, "little") + (start + 8).to_bytes(
        8, "little"
    )
    assert variables["one"]["data"] == [0, 0, 0x80, 0x3F]
    assert variables["zeros"]["address"] % 16 == 0


def test_shared_layout():
    k = decode(
        ".shared .align 1 .b8 a[3]; .shared .align 8 .b8 b[16]; .reg .b32 r<4>;\n"
        "mov.b32 r0, a; mov.b32 r1, b; mov.b32 r2, b+4; mov.b32 r3, dynamic;",
        before=".extern .shared .align 128 .b8 dynamic[];\n.shared .align 4 .b32 unused[100];",
    )
    addresses = [value_of(k, i["inputs"][0]) for i in k["code"][:4]]
    assert addresses == [1024, 1032, 1036, 1152]
    assert (k["static_shared"], k["dynamic_shared"]) == (24, 1152)


def test_a_kernel_lays_out_the_module_level_shared_variables_it_uses():
    text = (
        HEADER + ".shared .align 16 .b8 common[32];\n.shared .align 4 .b8 other[64];\n"
        ".entry one() { .reg .b32 r; mov.b32 r, other; mov.b32 r, common; ld.shared.b32 r, [other+4]; }\n"
        ".entry none() { .shared .align 4 .b8 own[4]; }\n"
    )
    kernels = {k["name"]: k for k in describe(text)["kernels"]}
    one = kernels["one"]
    assert [value_of(one, i["inputs"][0]) for i in one["code"][:2]] == [1024, 1024 + 64]
    base, offset = one["code"][2]["addresses"][0]
    assert value_of(one, base) + offset == 1028
    assert one["static_shared"] == 96
    assert kernels["none"]["static_shared"] == 4


def test_labels_branches_and_scopes():
    k = decode(
        ".reg .pred p; .reg .b32 r;\n"
        "{ .reg .b32 r; again: add.s32 r, r, 1; @p bra again; }\n"
        "{ again: @!p bra.uni again; bra done; }\n"
        "brx.idx r, table;\ntable: .branchtargets done, start, done;\n"
        "start: mov.b32 r, 0;\ndone: ret;"
    )
    code = k["code"]
    assert [i["target"] for i in code[1:4]] == [0, 2, 6]
    assert code[4]["targets"] == [6, 5, 6]
    assert code[0]["outputs"] != code[5]["outputs"], "the inner r hides the outer one"
    assert code[1]["guard"] >= 0


def test_addresses():
    k = decode(
        REGISTERS + "ld.global.b32 r, [d+16]; ld.global.b32 r, [d+-4]; ld.shared.b32 r, [area+8]; "
        "st.shared.b32 [r1], r; ld.param.b32 r, [n]; ld.param.b16 h, [n+2]; ld.shared.b32 r, [1088];",
        parameters=".param .u64 a, .param .u32 n",
    )
    bases = [i["addresses"][0] for i in k["code"][:7]]
    assert [offset for _, offset in bases[:3]] == [16, -4, 8]
    assert [value_of(k, base) + offset for base, offset in (bases[2], *bases[4:])] == [1032, 8, 10, 1088]


FUNCTION = """
.func (.param .b32 out) twice(.param .b32 in) {
    .reg .pred p; .reg .b32 x;
    ld.param.b32 x, [in];
    setp.eq.s32 p, x, 0;
    @p bra zero;
    add.s32 x, x, x;
    st.param.b32 [out], x;
    ret;
zero:
    st.param.b32 [out], 77;
    ret;
}
"""
CALL = """{ .param .b32 arg; .param .b32 result;
    st.param.b32 [arg], r;
    call.uni (result), twice, (arg);
    ld.param.b32 r1, [result]; }
"""


def test_functions_are_expanded_where_they_are_called():
    k = decode(REGISTERS + CALL + CALL.replace("call", "@p call"), before=FUNCTION)
    names = [i["opcode"] for i in k["code"]]
    once = ["Store", "Load", "Plain", "Branch", "Plain", "Store", "Branch", "Store", "Branch", "Load"]
    assert names == [*once, "Store", "Branch", *once[1:], "Return"]
    assert {i["space"] for i in k["code"] if i["opcode"] in ("Load", "Store")} == {4}, (
        "calls pass by local memory"
    )
    assert k["code"][6]["target"] == k["code"][8]["target"] == 9
    assert k["code"][11]["target"] == 20, "a call not made is jumped over"
    assert k["local"] == 16


def test_assertions_keep_their_arguments():
    body = (
        REGISTERS + "{ .param .b64 a; .param .b64 b; .param .b32 c; .param .b64 e; .param .b64 f;"
        " call.uni __assertfail, (a, b, c, e, f); }"
    )
    before = (
        ".extern .func __assertfail (.param .b64 a, .param .b64 b, .param .b32 c, .param .b64 e,"
        " .param .b64 f) .noreturn;"
    )
    k = decode(body, before=before)
    assert k["code"][0]["opcode"] == "AssertFail"
    assert [value_of(k, base) + offset for base, offset in k["code"][0]["addresses"]] == [0, 8, 16, 24]


def test_inline_assembly_blocks():
    """The forms that CUDA libraries write by hand."""
    names = opcodes(
        REGISTERS
        + """
        { .reg .pred P1;
        LAB_WAIT: mbarrier.try_wait.parity.shared::cta.b64 P1, [r], r1;
        @P1 bra DONE; bra LAB_WAIT; DONE: }
        { .reg .pred P1;
        LAB_WAIT: mbarrier.try_wait.parity.shared::cta.b64 P1, [r], r1, r2;
        @P1 bra DONE; bra LAB_WAIT; DONE: }
        { .reg .b64 state; mbarrier.arrive.expect_tx.shared::cta.b64 state, [r], 128; }
        mbarrier.arrive.release.cluster.shared::cluster.b64 _, [r];
        cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [r], [d, {r1, r2}], [r3];
        cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint
            [r], [d, {r1, r2}], [r3], h, d1;
        cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [d, {r1, r2, r3}], [r];
        cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [r], [d], 256, [r1];
        cp.async.bulk.commit_group; cp.async.bulk.wait_group.read 0;
        cp.async.cg.shared.global.L2::128B [r], [d], 16; cp.async.ca.shared.global [r], [d], 4, r1;
        cp.async.ca.shared.global [r], [d], 4, p; cp.async.commit_group; cp.async.wait_group 1;
        elect.sync _|p, 0xffffffff; setmaxnreg.dec.sync.aligned.u32 40;
        barrier.cluster.arrive.release.aligned;
        ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {r, r1}, [r2];
        ld.global.nc.L1::no_allocate.L2::128B.v2.b32 {r, r1}, [d]; st.global.v2.b64 [d], {d1, d2};
        fence.proxy.async.shared::cta; fence.mbarrier_init.release.cluster; membar.gl; fence.acq_rel.sys;
        red.release.gpu.global.add.u32 [d], r; atom.global.cta.add.u32 r, [d], 1; atom.cas.b64 d, [d1], d2, d;
        griddepcontrol.wait; nanosleep.u32 20; mov.u64 d, %globaltimer; bar.sync 1, 128;
        """
    )
    assert names == [
        *["MbarrierWait", "Branch", "Branch"] * 2, *["MbarrierArrive"] * 2, "TensorLoad", "TensorLoad",
        "TensorStore", "BulkLoad", "BulkCommit", "BulkWait", *["CpAsync"] * 3, "CpAsyncCommit", "CpAsyncWait",
        "Elect", "SetMaxNReg", "ClusterArrive", "LoadMatrix", "Load", "Store", "ProxyFence",
        "MbarrierInitFence", "Fence", "Fence", "Atomic", "Atomic", "Atomic", "GridDepWait", "Nop",
        "ReadTimer", "Barrier", "Return",
    ]  # fmt: skip


def test_tensor_core_instructions():
    registers = ".reg .f32 f<64>; .reg .b32 r<8>; .reg .b64 d<2>; .reg .pred p; "
    quads = "{f0, f1, f2, f3}, {r0, r1, r2, r3}, {r4, r5}, {f0, f1, f2, f3}"
    d = "{" + ", ".join(f"f{i}" for i in range(64)) + "}"
    names = opcodes(
        registers + f"mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {quads};"
        f"wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {d}, d0, d1, p, 1, 1;"
        f"wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {d}, d0, d1, p, 1, -1, 0, 1;"
        f"wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e5m2 {d}, {{r0, r1, r2, r3}}, d1, p, 1, 1;"
        "wgmma.fence.sync.aligned; wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 1;"
    )
    assert names == ["Mma", "Wgmma", "Wgmma", "Wgmma", "WgmmaFence", "WgmmaCommit", "WgmmaWait", "Return"]


# ---------------------------------------------------------------- refusal

REFUSED = {
    # Unknown words.
    "frobnicate.b32 r, r1;": "unknown opcode frobnicate",
    "add.rn.s32 r, r1, r2;": "add does not take .s32 here",
    "add.s32.sat r, r1, r2;": "add does not take .sat here",
    "fma.f32 r, r1, r2, r3;": "fma does not take .f32 here",
    "fma.rna.f32 r, r1, r2, r3;": "does not take .rna",
    "fma.rz.bf16 h, h, h, h;": "fma does not take .bf16",
    "add.f32.ftz r, r1, r2;": "does not take .ftz",
    "ex2.f32 r, r1;": "does not take .f32",
    "min.ftz.s32 r, r1, r2;": "does not take .s32",
    "cvt.s32.f32 r, r1;": "does not take .f32",
    "cvt.f16.f32 h, r;": "does not take .f32",
    "cvt.rn.f32.f16 r, h;": "does not take .f16",
    "cvt.rn.e4m3x2.f32 h, r, r1;": "does not take .e4m3x2",
    "cvt.rz.satfinite.e4m3x2.f32 h, r, r1;": "does not take",
    "ld.global.nc.v3.b32 {r, r1, r2}, [d];": "does not take .v3",
    "ld.acquire.global.b32 r, [d];": "ld does not take .global here",
    "ld.shared.nc.b32 r, [r1];": "ld does not take .nc",
    "ld.global.sys.b32 r, [d];": "ld does not take .sys",
    "atom.global.add.s64 d, [d1], d2;": "atom does not take .s64",
    "atom.cta.global.sys.add.u32 r, [d], 1;": "two scopes",
    "st.acquire.gpu.global.b32 [d], r;": "st does not take .acquire",
    "shfl.idx.b32 r, r1, 0, 31;": "shfl does not take .idx",
    "mma.sync.aligned.m16n8k16.row.row.f32.bf16.bf16.f32 {r}, {r}, {r}, {r};": "mma does not take .row",
    "wgmma.mma_async.sync.aligned.m64n12k16.f32.bf16.bf16 {r}, d, d, p, 1, 1, 0, 0;": "m64n12k16",
    "setp.lo.s32 p, r, r1;": "setp does not take .s32",
    "setp.equ.s32 p, r, r1;": "setp does not take .s32",
    "mul.wide.s64 d, d1, d2;": "mul does not take .s64",
    "mul.s32 r, r1, r2;": "mul does not take .s32",
    "tex.2d.v4.f32.s32 {r, r1, r2, r3}, [d, {r, r1}];": "unknown opcode tex",
    "cp.async.cg.shared.global.bulk [r], [d], 16;": "cp does not take .bulk",
    "fence.proxy.alias;": "fence does not take .alias",
    "add;": "add lacks a qualifier",
    # Operands.
    "add.s32 r, r1;": "wrong number of operands: 2",
    "add.s32 r, r1, r2, r3;": "wrong number of operands: 4",
    "ret r;": "wrong number of operands",
    "add.s32 d, r1, r2;": "d has 64 bits where the instruction takes 32 bits",
    "add.s32 r, d, r2;": "d has 64 bits",
    "add.f16 r, h, h;": "r has 32 bits where the instruction takes 16 bits",
    "mul.wide.u32 r, r1, r2;": "r has 32 bits where the instruction takes 64 bits",
    "add.s32 r, p, r2;": "p has a predicate",
    "setp.eq.s32 r, r1, r2;": "r has 32 bits where the instruction takes a predicate",
    "selp.b32 r, r1, r2, r3;": "r3 has 32 bits where the instruction takes a predicate",
    "shl.b64 d, d1, d2;": "d2 has 64 bits where the instruction takes 32 bits",
    "cvt.u64.u32 r, r1;": "r has 32 bits where the instruction takes 64 bits or more",
    "ld.global.b64 r, [d];": "r has 32 bits where the instruction takes 64 bits or more",
    "ld.global.v2.b32 {r, r1, r2}, [d];": "a vector of 3 elements instead of 2",
    "ld.global.v2.b32 r, [d];": "expected a vector of 2 elements",
    "ld.global.b32 r, d;": "expected an address",
    "ld.global.b32 r, [h];": "h is too narrow",
    "ld.global.b32 r, [a];": "a is in .param space",
    "add.s32 r, [d], r;": "expected a register",
    "add.s32 1, r, r;": "expected a register",
    "add.s32 _, r, r;": "must not be _",
    "add.s32 r, !r1, r2;": "must not be negated",
    "and.pred p, !q, p;": "must not be negated",
    "mov.pred p, !q;": "must not be negated",
    "lop3.b32 r, r1, r2, r3, !3;": "must not be negated",
    "selp.b32 r, r1, r2, !r3;": "r3 has 32 bits where the instruction takes a predicate",
    "mov.b32 r, {h, !h1};": "an element of a vector is negated",
    "add.s32 r, nowhere, r1;": "unknown name nowhere",
    "add.f32 r, r1, 1;": "an integer constant where the type is a float",
    "add.f64 d, d1, 0f3F800000;": "a float constant of the wrong width",
    "add.s32 r, r1, 1.5;": "a decimal fraction",
    "add.f32 r, r1, 0f3F8;": "malformed number",
    "mov.b32 {r, r1}, r2;": "r has 32 bits where the instruction takes 16 bits",
    "mov.b32 r, {h, h1, h, h1};": "mov packs 2 or 4",
    "mov.b32 r, %ctaid;": "unknown name %ctaid",
    "mov.b64 d, %tid.x;": "%tid.x has 32 bits where the instruction takes 64",
    "add.u32 r, %clock, 1;": "a timer is only read by mov",
    "lop3.b32 r, r1, r2, r3, r4;": "expected an integer constant",
    "prmt.b32 r, r1, r2;": "wrong number of operands",
    "@r add.s32 r, r, r;": "r has 32 bits where the instruction takes a predicate",
    "bra nowhere;": "no label nowhere",
    "brx.idx r, nowhere;": "no branch targets nowhere",
    "cp.async.cg.shared.global [r], [d], 8;": "copies 16 bytes",
    "setmaxnreg.inc.sync.aligned.u32 100;": "multiple of 8",
    "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {r, r, r, r}, {r, r}, {r, r}, {r, r, r, r};":
        "wrong number of registers",
    "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {r, r, r, r}, d, d, p, 2, 1, 0, 0;": "1 or -1",
    "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {r, r1}, [r2];": "wrong number of registers",
    "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [r], [d, {r1}], [r3];":
        "expected 2 coordinates",
    "mbarrier.arrive.shared::cluster.b64 d, [r];": "gives no state",
    "call.uni missing, ();": "which this module does not define",
    "call (r), d, (r1), prototype;": "calls through pointers",
    # Declarations.
    ".reg .b32 r;": "r is declared twice",
    ".reg .b128 wide;": "unsupported register width",
    ".texref t;": "unknown directive .texref",
    ".shared .align 3 .b8 x[4];": "no power of two",
    "r: r: ret;": "label r is defined twice",
}  # fmt: skip


@pytest.mark.parametrize("statement", REFUSED)
def test_refusal_names_line_and_instruction(statement):
    text = kernel(REGISTERS + "\n" + statement, parameters=".param .u64 a")
    with pytest.raises(Refused) as caught:
        describe(text)
    message = str(caught.value)
    line = text[: text.index(statement)].count("\n") + 1
    assert message.startswith(f"PARSE: line {line}: ")
    assert REFUSED[statement] in message
    if not re.search("no label|no branch targets|malformed|power of two", message):
        assert re.split(r"[ ;]", statement)[0] in message, "the instruction is shown"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (HEADER + ".entry k() { ret;", "a brace is not closed"),
        (HEADER + ".entry k() .maxfoo 3 { ret; }", "unknown directive .maxfoo"),
        (HEADER + '.entry k() { mov.b32 r, "open', "a string does not end"),
        (HEADER + ".entry k() { # }", "unexpected character"),
        (HEADER + ".extern .global .b32 x;\n", "defined in another module"),
        (HEADER + ".global .b32 x[1] = {1, 2};", "too many elements"),
        (HEADER + ".global .b32 x = y;", "unsupported initialiser"),
        (HEADER + ".surfref s;", "unknown directive .surfref"),
        (".version 9.0\n.target sm_90\n.address_size 32\n", "64-bit addresses"),
    ],
)
def test_malformed_modules(text, reason):
    with pytest.raises(Refused, match=r"PARSE: line \d+: ") as caught:
        describe(text)
    assert reason in str(caught.value)


def test_recursion_is_refused():
    before = ".func f();\n.func g() { call.uni f; ret; }\n.func f() { call.uni g; ret; }\n"
    with pytest.raises(Refused, match="recursion: f calls itself"):
        decode("call.uni f;", before=before)


def test_a_function_does_not_see_its_callers_registers():
    before = ".func f() { add.s32 r, r, 1; ret; }\n"
    with pytest.raises(Refused, match="unknown register r"):
        decode(REGISTERS + "call.uni f;", before=before)

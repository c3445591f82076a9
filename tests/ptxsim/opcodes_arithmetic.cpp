// Integer, floating-point, logic, comparison and move instructions.
#include "opcodes.h"

namespace ptxsim {
namespace {

const char* needs_pair_types(Instruction& instruction) {
    const bool packed = type_bytes(instruction.type) == 4;
    const bool half_source = instruction.source_type == Type::kF16 || instruction.source_type == Type::kBF16;
    if (half_source && type_is_float(instruction.type) && instruction.type != instruction.source_type)
        return "the two types must be the same";
    if (type_bytes(instruction.source_type) == 2 && packed) return "the destination must have 16 bits";
    return nullptr;
}

}  // namespace

std::vector<FormText> arithmetic_forms() {
    constexpr Opcode kPlain = Opcode::kPlain;
    return {
        // Integers.
        {"add [.sat] .s32", "d a a", kPlain, select_integer_add},
        {"add $int16up", "d a a", kPlain, select_integer_add},
        {"sub [.sat] .s32", "d a a", kPlain, select_integer_sub},
        {"sub $int16up", "d a a", kPlain, select_integer_sub},
        {"mul .lo|.hi $int16up", "d a a", kPlain, select_integer_mul},
        {"mul .wide .u16|.s16|.u32|.s32", "dw a a", kPlain, select_integer_mul},
        {"mad .hi .sat .s32", "d a a a", kPlain, select_integer_mad},
        {"mad .lo|.hi $int16up", "d a a a", kPlain, select_integer_mad},
        {"mad .wide .u16|.s16|.u32|.s32", "dw a a w", kPlain, select_integer_mad},
        {"sad $int16up", "d a a a", kPlain, select_sad},
        {"div $int16up", "d a a", kPlain, select_integer_div},
        {"rem $int16up", "d a a", kPlain, select_integer_rem},
        {"abs .s16|.s32|.s64", "d a", kPlain, select_integer_abs},
        {"neg .s16|.s32|.s64", "d a", kPlain, select_integer_neg},
        {"min $int16up", "d a a", kPlain, select_integer_min},
        {"max $int16up", "d a a", kPlain, select_integer_max},
        {"add .cc $carry", "d a a co", kPlain, select_carry_add},
        {"addc $carry", "d a a ci", kPlain, select_carry_add},
        {"addc .cc $carry", "d a a ci co", kPlain, select_carry_add},
        {"sub .cc $carry", "d a a co", kPlain, select_carry_sub},
        {"subc $carry", "d a a ci", kPlain, select_carry_sub},
        {"subc .cc $carry", "d a a ci co", kPlain, select_carry_sub},
        {"mad .lo|.hi .cc $carry", "d a a a co", kPlain, select_carry_mad},
        {"madc .lo|.hi $carry", "d a a a ci", kPlain, select_carry_mad},
        {"madc .lo|.hi .cc $carry", "d a a a ci co", kPlain, select_carry_mad},
        {"dp4a .u32|.s32 .u32|.s32", "d a a a", kPlain, select_dp4a},

        // f32 and f64.
        {"add [$frnd] [.ftz] [.sat] .f32", "d a a", kPlain, select_float_add},
        {"add [$frnd] .f64", "d a a", kPlain, select_float_add},
        {"sub [$frnd] [.ftz] [.sat] .f32", "d a a", kPlain, select_float_sub},
        {"sub [$frnd] .f64", "d a a", kPlain, select_float_sub},
        {"mul [$frnd] [.ftz] [.sat] .f32", "d a a", kPlain, select_float_mul},
        {"mul [$frnd] .f64", "d a a", kPlain, select_float_mul},
        {"fma $frnd [.ftz] [.sat] .f32", "d a a a", kPlain, select_float_fma},
        {"fma $frnd .f64", "d a a a", kPlain, select_float_fma},
        {"mad $frnd [.ftz] [.sat] .f32", "d a a a", kPlain, select_float_fma},
        {"mad $frnd .f64", "d a a a", kPlain, select_float_fma},
        {"div .approx|.full [.ftz] .f32", "d a a", kPlain, select_float_div},
        {"div $frnd [.ftz] .f32", "d a a", kPlain, select_float_div},
        {"div $frnd .f64", "d a a", kPlain, select_float_div},
        {"abs [.ftz] .f32", "d a", kPlain, select_float_abs},
        {"abs .f64", "d a", kPlain, select_float_abs},
        {"neg [.ftz] .f32", "d a", kPlain, select_float_neg},
        {"neg .f64", "d a", kPlain, select_float_neg},
        {"min [.ftz] [.NaN] [.xorsign.abs] .f32", "d a a", kPlain, select_float_min},
        {"min .f64", "d a a", kPlain, select_float_min},
        {"max [.ftz] [.NaN] [.xorsign.abs] .f32", "d a a", kPlain, select_float_max},
        {"max .f64", "d a a", kPlain, select_float_max},
        {"copysign .f32|.f64", "d a a", kPlain, select_copysign},
        {"testp .finite|.infinite|.number|.notanumber|.normal|.subnormal .f32|.f64", "p a", kPlain,
         select_testp},
        {"rcp .approx [.ftz] .f32", "d a", kPlain, select_rcp},
        {"rcp $frnd [.ftz] .f32", "d a", kPlain, select_rcp},
        {"rcp $frnd .f64", "d a", kPlain, select_rcp},
        {"rcp .approx .ftz .f64", "d a", kPlain, select_rcp},
        {"sqrt .approx [.ftz] .f32", "d a", kPlain, select_sqrt},
        {"sqrt $frnd [.ftz] .f32", "d a", kPlain, select_sqrt},
        {"sqrt $frnd .f64", "d a", kPlain, select_sqrt},
        {"rsqrt .approx [.ftz] .f32|.f64", "d a", kPlain, select_rsqrt},
        {"sin .approx [.ftz] .f32", "d a", kPlain, select_sin},
        {"cos .approx [.ftz] .f32", "d a", kPlain, select_cos},
        {"lg2 .approx [.ftz] .f32", "d a", kPlain, select_lg2},
        {"ex2 .approx [.ftz] .f32", "d a", kPlain, select_ex2},
        {"ex2 .approx .f16|.f16x2", "d a", kPlain, select_ex2},
        {"ex2 .approx .ftz .bf16|.bf16x2", "d a", kPlain, select_ex2},
        {"tanh .approx .f32|.f16|.f16x2|.bf16|.bf16x2", "d a", kPlain, select_tanh},

        // f16 and bf16.
        {"add [.rn] [.ftz] [.sat] .f16|.f16x2", "d a a", kPlain, select_half_add},
        {"add [.rn] .bf16|.bf16x2", "d a a", kPlain, select_half_add},
        {"sub [.rn] [.ftz] [.sat] .f16|.f16x2", "d a a", kPlain, select_half_sub},
        {"sub [.rn] .bf16|.bf16x2", "d a a", kPlain, select_half_sub},
        {"mul [.rn] [.ftz] [.sat] .f16|.f16x2", "d a a", kPlain, select_half_mul},
        {"mul [.rn] .bf16|.bf16x2", "d a a", kPlain, select_half_mul},
        {"fma .rn [.ftz] [.sat|.relu] .f16|.f16x2", "d a a a", kPlain, select_half_fma},
        {"fma .rn [.relu] .bf16|.bf16x2", "d a a a", kPlain, select_half_fma},
        {"abs [.ftz] .f16|.f16x2", "d a", kPlain, select_half_abs},
        {"abs .bf16|.bf16x2", "d a", kPlain, select_half_abs},
        {"neg [.ftz] .f16|.f16x2", "d a", kPlain, select_half_neg},
        {"neg .bf16|.bf16x2", "d a", kPlain, select_half_neg},
        {"min [.ftz] [.NaN] [.xorsign.abs] .f16|.f16x2", "d a a", kPlain, select_half_min},
        {"min [.NaN] [.xorsign.abs] .bf16|.bf16x2", "d a a", kPlain, select_half_min},
        {"max [.ftz] [.NaN] [.xorsign.abs] .f16|.f16x2", "d a a", kPlain, select_half_max},
        {"max [.NaN] [.xorsign.abs] .bf16|.bf16x2", "d a a", kPlain, select_half_max},

        // Comparison and selection.
        {"setp .eq|.ne .b16|.b32|.b64", "p a a / p|p a a", kPlain, select_setp},
        {"setp .eq|.ne|.lt|.le|.gt|.ge $int16up", "p a a / p|p a a", kPlain, select_setp},
        {"setp .lo|.ls|.hi|.hs .u16|.u32|.u64", "p a a / p|p a a", kPlain, select_setp},
        {"setp $float_compare [.ftz] .f32|.f16", "p a a / p|p a a", kPlain, select_setp},
        {"setp $float_compare .f64|.bf16", "p a a / p|p a a", kPlain, select_setp},
        {"setp .eq|.ne .and|.or|.xor .b16|.b32|.b64", "p a a q / p|p a a q", kPlain, select_setp},
        {"setp .eq|.ne|.lt|.le|.gt|.ge .and|.or|.xor $int16up", "p a a q / p|p a a q", kPlain, select_setp},
        {"setp .lo|.ls|.hi|.hs .and|.or|.xor .u16|.u32|.u64", "p a a q / p|p a a q", kPlain, select_setp},
        {"setp $float_compare .and|.or|.xor [.ftz] .f32|.f16", "p a a q / p|p a a q", kPlain, select_setp},
        {"setp $float_compare .and|.or|.xor .f64|.bf16", "p a a q / p|p a a q", kPlain, select_setp},
        {"set .eq|.ne|.lt|.le|.gt|.ge .u32|.s32|.f32 .u32|.s32", "d s s", kPlain, select_set},
        {"set $float_compare [.ftz] .u32|.s32|.f32 .f32", "d s s", kPlain, select_set},
        {"set $float_compare [.ftz] .f16|.u16|.s16 .f16", "d s s", kPlain, select_set, needs_pair_types},
        {"set $float_compare [.ftz] .f16x2 .f16x2", "d s s", kPlain, select_set},
        {"set $float_compare .bf16|.u16|.s16 .bf16", "d s s", kPlain, select_set, needs_pair_types},
        {"set $float_compare .bf16x2 .bf16x2", "d s s", kPlain, select_set},
        {"set $float_compare .u32|.s32 .f16x2|.bf16x2", "d s s", kPlain, select_set},
        {"selp .b16|.b32|.b64|.f32|.f64", "d a a q", kPlain, select_selp},
        {"selp $int16up", "d a a q", kPlain, select_selp},

        // Logic, shifts, bit fields.
        {"and .pred|.b16|.b32|.b64", "d a a", kPlain, select_and},
        {"or .pred|.b16|.b32|.b64", "d a a", kPlain, select_or},
        {"xor .pred|.b16|.b32|.b64", "d a a", kPlain, select_xor},
        {"not .pred|.b16|.b32|.b64", "d a", kPlain, select_not},
        {"lop3 .b32", "d a a a i", kPlain, select_lop3},
        {"shl .b16|.b32|.b64", "d a u", kPlain, select_shl},
        {"shr .b16|.b32|.b64", "d a u", kPlain, select_shr},
        {"shr $int16up", "d a u", kPlain, select_shr},
        {"shf .l|.r .clamp|.wrap .b32", "d a a u", kPlain, select_shf},
        {"prmt .b32 [.f4e|.b4e|.rc8|.ecl|.ecr|.rc16]", "d a a a", kPlain, select_prmt},
        {"popc .b32|.b64", "d32 a", kPlain, select_popc},
        {"clz .b32|.b64", "d32 a", kPlain, select_clz},
        {"bfind [.shiftamt] .u32|.s32|.u64|.s64", "d32 a", kPlain, select_bfind},
        {"brev .b32|.b64", "d a", kPlain, select_brev},
        {"bfe .u32|.s32|.u64|.s64", "d a u u", kPlain, select_bfe},
        {"bfi .b32|.b64", "d a a u u", kPlain, select_bfi},

        // Moves and addresses.
        {"mov .pred|.b16|.b32|.b64|.f32|.f64", "D A", kPlain, select_mov},
        {"mov $int16up", "D A", kPlain, select_mov},
        {"cvta .global|.shared|.shared::cta|.shared::cluster|.local|.const|.param|.param::entry .u32|.u64",
         "d a", kPlain, select_cvta},
        {"cvta .to .global|.shared|.shared::cta|.shared::cluster|.local|.const|.param|.param::entry "
         ".u32|.u64",
         "d a", kPlain, select_cvta},
        {"isspacep .global|.shared|.shared::cta|.shared::cluster|.local|.const|.param|.param::entry", "p b64",
         kPlain, select_isspacep},
        // Eviction policies have no effect on results.
        {"createpolicy .fractional $policy [.L2::evict_first|.L2::evict_unchanged] .b64", "d f / d", kPlain,
         select_zero},
    };
}

std::vector<FormText> conversion_forms() {
    constexpr Opcode kPlain = Opcode::kPlain;
    return {
        {"cvt [.sat] $int $int", "d+ s+", kPlain, select_cvt},
        {"cvt $irnd [.ftz] [.sat] $int .f32", "d+ s", kPlain, select_cvt},
        {"cvt $irnd [.sat] $int .f16|.bf16|.f64", "d+ s", kPlain, select_cvt},
        {"cvt $frnd [.ftz] [.sat] .f32 $int", "d s+", kPlain, select_cvt},
        {"cvt $frnd [.sat] .f16|.bf16|.f64 $int", "d s+", kPlain, select_cvt},
        // Widening is exact and takes no rounding.
        {"cvt [.ftz] [.sat] .f32 .f16|.bf16", "d s", kPlain, select_cvt},
        {"cvt [.ftz] [.sat] .f64 .f32", "d s", kPlain, select_cvt},
        {"cvt [.sat] .f64 .f16|.bf16", "d s", kPlain, select_cvt},
        {"cvt $frnd [.ftz] [.sat] .f32 .f64", "d s", kPlain, select_cvt},
        {"cvt $frnd [.ftz] [.sat] .f16|.bf16 .f32", "d s", kPlain, select_cvt},
        {"cvt $frnd [.sat] .f16|.bf16 .f64", "d s", kPlain, select_cvt},
        {"cvt $frnd .bf16 .f16", "d s", kPlain, select_cvt},
        {"cvt $frnd .f16 .bf16", "d s", kPlain, select_cvt},
        {"cvt .rn|.rz [.relu] [.satfinite] .f16|.bf16 .f32", "d s", kPlain, select_cvt},
        {"cvt .rn|.rz [.relu] [.satfinite] .f16x2|.bf16x2 .f32", "d s s", kPlain, select_cvt},
        {"cvt .rna [.satfinite] .tf32 .f32", "d s", kPlain, select_cvt},
        {"cvt .rn|.rz [.satfinite] [.relu] .tf32 .f32", "d s", kPlain, select_cvt},
        // To the same format: rounding to an integer, saturation, flushing.
        {"cvt [$irnd] [.ftz] [.sat] .f32 .f32", "d s", kPlain, select_cvt},
        {"cvt [$irnd] [.sat] .f64 .f64", "d s", kPlain, select_cvt},
        {"cvt [$irnd] [.sat] .f16 .f16", "d s", kPlain, select_cvt},
        {"cvt $irnd .bf16 .bf16", "d s", kPlain, select_cvt},
        {"cvt .rn .satfinite [.relu] .e4m3x2|.e5m2x2 .f32", "d s s", kPlain, select_cvt},
        {"cvt .rn .satfinite [.relu] .e4m3x2|.e5m2x2 .f16x2", "d s", kPlain, select_cvt},
        {"cvt .rn [.relu] .f16x2 .e4m3x2|.e5m2x2", "d s", kPlain, select_cvt},
    };
}

}  // namespace ptxsim

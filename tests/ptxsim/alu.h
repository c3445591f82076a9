// The lane-wise instructions. Each select_* gives the function for a decoded instruction, by its types and
// qualifiers, or nullptr where the opcode table admitted something that has no meaning (an error of the
// table).
#pragma once
#include "program.h"

namespace ptxsim {

using Selector = PlainFunction (*)(const Instruction& instruction);

// alu_integer.cpp
PlainFunction select_integer_add(const Instruction& instruction);
PlainFunction select_integer_sub(const Instruction& instruction);
PlainFunction select_integer_mul(const Instruction& instruction);
PlainFunction select_integer_mad(const Instruction& instruction);
PlainFunction select_integer_div(const Instruction& instruction);
PlainFunction select_integer_rem(const Instruction& instruction);
PlainFunction select_integer_min(const Instruction& instruction);
PlainFunction select_integer_max(const Instruction& instruction);
PlainFunction select_integer_abs(const Instruction& instruction);
PlainFunction select_integer_neg(const Instruction& instruction);
PlainFunction select_sad(const Instruction& instruction);
PlainFunction select_dp4a(const Instruction& instruction);

// alu_carry.cpp: .cc, addc, subc, madc
PlainFunction select_carry_add(const Instruction& instruction);
PlainFunction select_carry_sub(const Instruction& instruction);
PlainFunction select_carry_mad(const Instruction& instruction);

// alu_bits.cpp
PlainFunction select_and(const Instruction& instruction);
PlainFunction select_or(const Instruction& instruction);
PlainFunction select_xor(const Instruction& instruction);
PlainFunction select_not(const Instruction& instruction);
PlainFunction select_shl(const Instruction& instruction);
PlainFunction select_shr(const Instruction& instruction);
PlainFunction select_shf(const Instruction& instruction);
PlainFunction select_lop3(const Instruction& instruction);
PlainFunction select_prmt(const Instruction& instruction);
PlainFunction select_popc(const Instruction& instruction);
PlainFunction select_clz(const Instruction& instruction);
PlainFunction select_bfind(const Instruction& instruction);
PlainFunction select_brev(const Instruction& instruction);
PlainFunction select_bfe(const Instruction& instruction);
PlainFunction select_bfi(const Instruction& instruction);

// alu_float.cpp: f32 and f64
PlainFunction select_float_add(const Instruction& instruction);
PlainFunction select_float_sub(const Instruction& instruction);
PlainFunction select_float_mul(const Instruction& instruction);
PlainFunction select_float_fma(const Instruction& instruction);
PlainFunction select_float_div(const Instruction& instruction);
PlainFunction select_float_min(const Instruction& instruction);
PlainFunction select_float_max(const Instruction& instruction);
PlainFunction select_float_abs(const Instruction& instruction);
PlainFunction select_float_neg(const Instruction& instruction);
PlainFunction select_copysign(const Instruction& instruction);
PlainFunction select_testp(const Instruction& instruction);

// alu_functions.cpp: reciprocal, roots and the approximate functions
PlainFunction select_rcp(const Instruction& instruction);
PlainFunction select_sqrt(const Instruction& instruction);
PlainFunction select_rsqrt(const Instruction& instruction);
PlainFunction select_sin(const Instruction& instruction);
PlainFunction select_cos(const Instruction& instruction);
PlainFunction select_lg2(const Instruction& instruction);
PlainFunction select_ex2(const Instruction& instruction);
PlainFunction select_tanh(const Instruction& instruction);

// alu_half.cpp: f16, bf16 and their packed forms
PlainFunction select_half_add(const Instruction& instruction);
PlainFunction select_half_sub(const Instruction& instruction);
PlainFunction select_half_mul(const Instruction& instruction);
PlainFunction select_half_fma(const Instruction& instruction);
PlainFunction select_half_min(const Instruction& instruction);
PlainFunction select_half_max(const Instruction& instruction);
PlainFunction select_half_abs(const Instruction& instruction);
PlainFunction select_half_neg(const Instruction& instruction);

// alu_compare.cpp
PlainFunction select_setp(const Instruction& instruction);
PlainFunction select_set(const Instruction& instruction);
PlainFunction select_selp(const Instruction& instruction);

// alu_move.cpp
PlainFunction select_mov(const Instruction& instruction);
PlainFunction select_zero(const Instruction& instruction);
PlainFunction select_cvta(const Instruction& instruction);
PlainFunction select_isspacep(const Instruction& instruction);

// convert.cpp
PlainFunction select_cvt(const Instruction& instruction);

}  // namespace ptxsim

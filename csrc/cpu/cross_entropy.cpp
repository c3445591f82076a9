#include "cpu/cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "cpu/intrinsics.h"
#include "formats/bf16.h"
#include "formats/e4m3.h"
#include "formats/e5m6.h"
#include "formats/exp.h"
#include "formats/f16.h"
#include "formats/scale.h"
#include "formats/tiles.h"

#define DSE_BODY_WITHOUT_BF16
#define DSE_BODY "cpu/cross_entropy.inc"
#include "cpu/foreach_isa.h"

namespace dse::cpu {

void cross_entropy(const FloatMatrix& logits, const int64_t* targets, float* losses, int64_t* choices,
                   const ParallelFor& parallel) {
    DSE_SELECT(cross_entropy)(logits, targets, losses, choices, parallel);
}

}  // namespace dse::cpu

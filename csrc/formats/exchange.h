// Which ranks a token goes to: one definition for host and device.
#pragma once
#include "formats/views.h"

namespace dse {

// Writes the ranks of token t's choices, ascending and each once, and fills up with -1. A choice is skipped
// if it is negative or its rank is none of num_ranks.
DSE_FN void ranks_of_token(const Slots& indices, int64_t t, int64_t experts_per_rank, int64_t num_ranks,
                           int64_t width, int32_t* ranks) {
    const int32_t* choices = indices.slots + t * indices.top_k;
    int64_t before = -1;
    for (int64_t n = 0; n < width; ++n) {
        int64_t next = num_ranks;  // the lowest rank above the one before
        for (int64_t k = 0; k < indices.top_k; ++k) {
            if (choices[k] < 0) continue;
            const int64_t rank = static_cast<uint32_t>(choices[k]) / static_cast<uint32_t>(experts_per_rank);
            if (rank > before && rank < next) next = rank;
        }
        ranks[n] = next < num_ranks ? static_cast<int32_t>(next) : -1;
        before = next;
    }
}

}  // namespace dse

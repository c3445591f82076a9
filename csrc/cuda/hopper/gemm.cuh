// The gemm for compute capability 9.0: codes go from shared memory to the tensor core as E4M3. Where it
// serves it takes the place of the portable kernel behind the launchers of cuda/gemm.cuh.
#pragma once
#include "cuda/gemm_plan.h"
#include "cuda/gemm_work.cuh"

namespace dse::cuda::hopper {

// Launches and returns true if the device has 9.0 and tensor maps can describe the operands; else false. The
// tiles in `arguments` are for it to choose.
bool run_gemm(const GemmArguments& arguments, const GemmShape& shape, int device, int sms,
              cudaStream_t stream);

}  // namespace dse::cuda::hopper

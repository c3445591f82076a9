// CUDA's mathematical functions, whose PTX uses rounding directions, approximations, bit fields and 64-bit
// products in ways that hand-written tests do not: a wrong instruction shows as a result outside the
// documented error.
#include <cstdint>

extern "C" __global__ void functions(const float* x, float* y, int function) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    const float v = x[i];
    float result = 0;
    switch (function) {
        case 0:
            result = expf(v);
            break;
        case 1:
            result = logf(fabsf(v));
            break;
        case 2:
            result = sinf(v);
            break;
        case 3:
            result = cosf(v * 1e6f);
            break;
        case 4:
            result = tanhf(v);
            break;
        case 5:
            result = erff(v);
            break;
        case 6:
            result = cbrtf(v);
            break;
        case 7:
            result = fmodf(v, 0.3f);
            break;
        case 8:
            result = powf(fabsf(v), 1.7f);
            break;
        case 9:
            result = log1pf(fabsf(v));
            break;
        case 10:
            result = expm1f(v);
            break;
        case 11:
            result = rintf(v) + floorf(v) * 16.0f + truncf(v) * 256.0f;
            break;
    }
    y[i] = result;
}

extern "C" __global__ void doubles(const double* x, double* y, int function) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    const double v = x[i];
    double result = 0;
    switch (function) {
        case 0:
            result = exp(v);
            break;
        case 1:
            result = log(fabs(v));
            break;
        case 2:
            result = sin(v);
            break;
        case 3:
            result = 1 / v;
            break;
        case 4:
            result = sqrt(fabs(v));
            break;
        case 5:
            result = tanh(v);
            break;
    }
    y[i] = result;
}

extern "C" __global__ void integers(const int64_t* a, const int64_t* b, int64_t* y, int64_t* low,
                                    int64_t* high) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    y[i] = a[i] / b[i] * 3 + a[i] % b[i] + static_cast<int64_t>(static_cast<uint64_t>(a[i]) / 7) +
           static_cast<int32_t>(a[i]) % 10 + static_cast<uint32_t>(b[i]) / 3 + __popcll(a[i]) +
           __ffsll(b[i]) + __clzll(a[i]) + static_cast<uint16_t>(__brev(static_cast<uint32_t>(b[i])));
    const __int128 product = static_cast<__int128>(a[i]) * b[i];
    low[i] = static_cast<int64_t>(product);
    high[i] = static_cast<int64_t>(product >> 64);
}

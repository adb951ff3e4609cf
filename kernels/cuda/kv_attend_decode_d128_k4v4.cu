#include "kernels/cuda/kv_attend_decode_launch.cuh"

namespace kivi::cuda {
template cudaError_t launch_decode<128, 4, 4>(const DecodeLaunch&, const DecodeGrid&, cudaStream_t);
}

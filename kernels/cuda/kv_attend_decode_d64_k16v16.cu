#include "kernels/cuda/kv_attend_decode_launch.cuh"

namespace kivi::cuda {
template cudaError_t launch_decode<64, 16, 16>(const DecodeLaunch&, const DecodeGrid&,
                                               cudaStream_t);
}

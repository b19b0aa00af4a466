// What the launches over global memory share: a block's slice of an image's tokens, as the fused kernel's phases see
// it.
#pragma once

#include "cuda/kernels/zip_image.cuh"
#include "cuda/plan/global_params.h"

namespace visionzip::cuda {

// Of a slice, eight lanes work on so many tokens at a time.
constexpr int kLaneTokens = 4;
static_assert(kSliceThreads / kTokenLanes * kLaneTokens == kSliceTokens);

// A Team (team.h) of blocks that never meet: where they would, a launch ends.  Metrics are written to where everybody
// reads them.
struct SliceTeam {
  __device__ void publish4(int, int, float4) {}
  static constexpr int rank = 0;
};

template <class U>
__device__ __forceinline__ U* scratch_at(const GlobalParams& p, int64_t offset) {
  return reinterpret_cast<U*>(static_cast<char*>(p.scratch) + offset);
}

// An image alone, for launches with a block an image.
template <class T = float, bool kFromQueries = false>
using SlicedImage = ZipImage<T, kFromQueries, SliceTeam>;

__device__ __forceinline__ int64_t first_slice_of(const GlobalParams& p, int64_t image) {
  return p.sequences ? p.sequences[image].first_token / kSliceTokens + image : image * ceil_divide(p.S, kSliceTokens);
}

__device__ __forceinline__ int64_t image_of_slice(const GlobalParams& p, int64_t slice) {
  if (!p.sequences) return slice / ceil_divide(p.S, kSliceTokens);
  int64_t found = 0, above = p.images;  // the last image that begins with this slice or before it
  while (above - found > 1) {
    const int64_t middle = (found + above) / 2;
    (first_slice_of(p, middle) <= slice ? found : above) = middle;
  }
  return found;
}

// The image, with this block's slice of it as the tokens that the block owns, and the slice's record in the place of
// shared memory.
template <class T = float, bool kFromQueries = false>
struct Slice : SlicedImage<T, kFromQueries> {
  using Image = SlicedImage<T, kFromQueries>;

  __device__ Slice(const GlobalParams& params, SliceTeam& its_team, int64_t slice)
      : Slice(params, its_team, slice, image_of_slice(params, slice)) {}

  // No token of the slice exists, or no row of the image.
  __device__ __forceinline__ bool is_empty() const { return this->own_tokens == 0 || this->k + this->m == 0; }

  // A token's metric.
  __device__ __forceinline__ float* metric(int token) const {
    const int64_t record = first_slice + token / kSliceTokens;
    return scratch_at<float>(all, all.lies.records + record * all.lies.record_bytes + all.at.metric) +
           static_cast<int64_t>(token % kSliceTokens) * all.Dp;
  }

  // Of the slice's tokens, the i-th of those that the thread's lanes work on; where there are fewer, beyond the end.
  __device__ __forceinline__ int token_of_lanes(int i) const {
    return this->tid / kTokenLanes + i * (kSliceThreads / kTokenLanes);
  }

  const GlobalParams& all;
  int64_t number, first_slice;  // of the image

 private:
  __device__ Slice(const GlobalParams& params, SliceTeam& its_team, int64_t slice, int64_t image)
      : Image(params, scratch_at<char>(params, params.lies.records + slice * params.lies.record_bytes), its_team,
              image),
        all(params),
        number(image),
        first_slice(first_slice_of(params, image)) {
    const int chunk = chunk_tokens(this->S);
    this->block_tokens = kSliceTokens;
    this->first_token = static_cast<int>(slice - first_slice) * kSliceTokens;
    this->own_tokens = max(0, min(kSliceTokens, this->S - this->first_token));
    this->first_chunk = this->first_token / chunk;
    this->own_chunks = ceil_divide(this->own_tokens, chunk);
  }
};

}  // namespace visionzip::cuda

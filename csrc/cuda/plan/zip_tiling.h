// How a team of blocks divides one image of the fused kernel, and where things lie in shared memory.  Known to the
// plan, which chooses it, and to the kernel.  Plain data; no torch and no CUDA header.
#pragma once

#include "common/rounding.h"
#include "cuda/plan/zip_problem.h"

namespace visionzip::cuda {

// Most of a block.  A multiprocessor has registers for so many: two blocks of half of them run side by side.
constexpr int kZipThreads = 512;
constexpr int kCounterBytes = 256;
// Targets whose metrics are held in shared memory at a time.
constexpr int kTargetTile = 64;

// Selection by digits takes so many bits of a score a round: a digit for each lane of a warp.
constexpr int kDigitBits = 5;
constexpr int kDigitRounds = (32 + kDigitBits - 1) / kDigitBits;

// Softmax statistics are formed over chunks of so many tokens, whoever owns them; a block owns whole chunks.  Small
// chunks share the tokens of a short image evenly among 16 blocks; long images have enough tokens to afford larger
// ones.
constexpr int kShortImage = 2048;
VISIONZIP_HOST_DEVICE inline constexpr int chunk_tokens(int S) { return S <= kShortImage ? 8 : 128; }
VISIONZIP_HOST_DEVICE inline constexpr int chunks_of(int S) { return ceil_divide(S, chunk_tokens(S)); }

// 16-byte vectors of channels that each of a team's blocks merges.
int32_t block_vectors_of(const ZipProblem& problem, int32_t team_blocks);

// Tokens that each of a team's blocks owns; never fewer of a longer image.
VISIONZIP_HOST_DEVICE inline constexpr int block_tokens_of(int S, int team_blocks) {
  return ceil_divide(chunks_of(S), team_blocks) * chunk_tokens(S);
}

// From one token's logits, or one chunk's statistics, of H heads to the next's: an odd number, so that lanes that take
// a head of 32 of them find it in different banks.
VISIONZIP_HOST_DEVICE inline constexpr int heads_pitch(int H) { return H | 1; }

// Bytes from the start of dynamic shared memory.  From `overlay` on, phases use the same memory one after another: what
// decides, and then what merges.
struct SharedLayout {
  // Replicated: after an exchange every block of the team holds all tokens' values.
  int32_t scores;           // uint32 (S), in the order of `ordered`
  int32_t merged_into;      // uint16 (S): the target that a token joins, or kNone
  int32_t softmax_stats;    // float2 (chunks, heads_pitch): maximum and sum of a chunk
  int32_t selected_bitmap;  // uint32 (words): a bit a token, of those that do not remain
  int32_t offers;           // uint4 (2, team_blocks): of the policy "distinct", what each block would take next
  int32_t replicated_end;
  // The block's own, always valid.
  int32_t selected_before;  // uint32 (words): selected tokens before each word of selected_bitmap
  int32_t kept;             // uint16 (k): the token of each kept row
  int32_t targets;          // uint16 (m)
  int32_t digit_counts;     // int32 (kDigitRounds, 32): scores with each digit
  int32_t overlay;
  // Until the assignments are shared.
  int32_t metric;         // float (own tokens, Dp)
  int32_t head_stats;     // float2 (H)
  int32_t query;          // float (H, Dq)
  int32_t logits;         // float (own tokens, heads_pitch); of given attention sums, (heads, own tokens)
  int32_t target_metric;  // float (kTargetTile, Dp), unit vectors; over the three before
  // Of the policy "distinct", over those as well.
  int32_t lengths;      // float (own tokens): of metrics; infinite where they have no direction
  int32_t resemblance;  // float (own tokens): similarity to the nearest of the tokens taken so far; 0 to 1
  int32_t unit;         // float (Dp): the last of them, as a unit vector
  int32_t of_warps;     // uint64 (warps): what each would take next
  // After that.
  int32_t token_list;         // uint16 (R - m): tokens by target, ascending
  int32_t first_of_target;    // int32 (m + 1)
  int32_t segments_before;    // int32 (m + 1)
  int32_t target_of_segment;  // uint16 (segments)
  int32_t partial_sums;       // float (segments, tile_vectors, elements of a vector)
  int32_t stage;              // 16-byte vectors (S, tile_vectors): hidden
  int32_t total;

  bool operator==(const SharedLayout&) const = default;
};

// What the kernel reads of a plan.
struct ZipTiling {
  int32_t team_blocks;    // blocks that work on one image
  int32_t teams;          // that work at the same time, each on one image after another
  int32_t block_vectors;  // 16-byte vectors of channels that a block merges
  int32_t tile_vectors;   // and at a time
  int32_t Dp;             // D rounded up to 4
  bool staged;            // hidden is copied into shared memory, in one tile; otherwise it is read where it is
  bool rank_counting;     // selection by counting, shared by the team; otherwise by digits, each block for itself
  SharedLayout at;
  int64_t scratch_of_team;  // of teams over global memory: bytes, which begin with kCounterBytes that are zero

  bool operator==(const ZipTiling&) const = default;
};

// The block's channels are merged so many 16-byte vectors at a time (0: all at once), from a copy in shared memory or
// from where hidden is.
struct HiddenTile {
  bool staged;
  int32_t vectors;
};

// For teams of so many blocks.
ZipTiling make_tiling(const ZipProblem& problem, int32_t team_blocks, int32_t teams, HiddenTile tile,
                      bool rank_counting);

}  // namespace visionzip::cuda

// What one launch of the fused kernel needs: the problem, the plan, and where things lie in shared memory.  Plain data;
// no torch header and no CUDA header, so that plans are made and tested on machines without a GPU.
#pragma once

#include "common/types.h"
#include "cuda/plan/sequences.h"

namespace visionzip::cuda {

constexpr int kCounterBytes = 256;
// Targets whose metrics are held in shared memory at a time.
constexpr int kTargetTile = 64;

// Softmax statistics are formed over chunks of so many tokens, whoever owns them; a block owns whole chunks.  Small
// chunks share the tokens of a short image evenly among 16 blocks; long images have enough tokens to afford larger
// ones.
constexpr int kShortImage = 2048;
VISIONZIP_HOST_DEVICE inline constexpr int chunk_tokens(int S) { return S <= kShortImage ? 8 : 128; }
VISIONZIP_HOST_DEVICE inline constexpr int chunks_of(int S) { return (S + chunk_tokens(S) - 1) / chunk_tokens(S); }

// Tokens that each of a team's blocks owns; never fewer of a longer image.
VISIONZIP_HOST_DEVICE inline constexpr int block_tokens_of(int S, int team_blocks) {
  return (chunks_of(S) + team_blocks - 1) / team_blocks * chunk_tokens(S);
}

// Bytes from the start of dynamic shared memory.  Three lives overlay each other: `decision` (until the assignments are
// shared), inside it `scoring` and then `targets`; and after it `merging`.
struct SharedLayout {
  // Replicated: after an exchange every block of the team holds all tokens' values.
  int32_t scores;         // uint32 (S), in the order of `ordered`
  int32_t merged_into;    // uint16 (S): the target that a token joins, or kNone
  int32_t softmax_stats;  // float2 (chunks, H): maximum and sum of a chunk
  int32_t kept_bytes;     // uint32 (words): a bit a token
  int32_t replicated_end;
  // The block's own, always valid.
  int32_t kept_before;   // uint32 (words): kept tokens before each word of kept_bytes
  int32_t kept;          // uint16 (k): the token of each kept row
  int32_t targets;       // uint16 (m)
  int32_t digit_counts;  // int32 (32)
  int32_t overlay;
  // Until the assignments are shared.
  int32_t metric;         // float (own tokens, Dp)
  int32_t head_stats;     // float2 (H)
  int32_t query;          // float (H, Dq)
  int32_t logits;         // float (own tokens, H)
  int32_t target_metric;  // float (kTargetTile, Dp), unit vectors; over the three before
  // Then.
  int32_t token_list;         // uint16 (R - m): tokens by target, ascending
  int32_t first_of_target;    // int32 (m + 1)
  int32_t segments_before;    // int32 (m + 1)
  int32_t target_of_segment;  // uint16 (segments)
  int32_t partial_sums;       // float (segments, tile_vectors, elements of a vector)
  int32_t stage;              // 16-byte vectors (S, tile_vectors): hidden
  int32_t total;
};

struct ZipParams {
  const void *hidden, *keys, *queries, *attn;  // hidden: wide, or null for `select`; queries: null where attn is given
  const float* lse;                            // or null
  void* tokens;
  int64_t *indices, *assignment;
  // In elements; every last dimension has unit stride.
  int64_t hidden_image, hidden_token;
  int64_t key_image, key_head, key_token;
  int64_t query_image, query_head;
  int64_t attn_image, attn_head, attn_row;
  int64_t lse_image, lse_head;
  // Null, or where each of the images lies that are packed along one axis of tokens, and the order to take them in. The
  // strides `_image` are then those of a token.
  const Sequence* sequences;
  const int32_t* order;
  int64_t images;
  int64_t all_tokens;  // of all images
  int32_t S, k, m;     // of each image; where they are packed, the most that any has
  int32_t C, H, D;
  int32_t group;                  // cells, rows of keys and scores, to a token; 1 unless images are packed
  int32_t attn_heads, attn_rows;  // 1, 1 for finished scores; H, S for the mean of a matrix
  DType attn_dtype;
  MergeMode mode;
  float scale;
  bool has_cls;
  bool wide_keys;  // every row starts at a multiple of 16 bytes and is as long
  // The plan.
  int32_t team_blocks;    // blocks that work on one image
  int32_t block_vectors;  // 16-byte vectors of channels that a block merges
  int32_t tile_vectors;   // and at a time
  bool staged;            // hidden is copied into shared memory, in one tile; otherwise it is read where it is
  bool rank_counting;     // selection by counting, shared by the team; otherwise by digits, each block for itself
  int32_t Dp;             // D rounded up to 4
  int32_t most_segments;
  int32_t teams;  // that work at the same time, each on one image after another
  // Teams over global memory: each begins with kCounterBytes that are zero.
  void* scratch;
  int64_t scratch_of_team;
  SharedLayout at;
};

inline int32_t round_up(int32_t x, int32_t unit) { return (x + unit - 1) / unit * unit; }

// Fills in the plan's derived numbers and the layout.  Set before: the problem, team_blocks, tile_vectors (0: all of a
// block's) and staged.
void lay_out(ZipParams& params, int32_t hidden_element_bytes);

}  // namespace visionzip::cuda

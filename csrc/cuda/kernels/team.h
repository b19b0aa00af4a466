// Team: the blocks that work on one image.  The kernel's phases know nothing else about who cooperates.
//
// - rank: this block's number in the team.
//
// - first_position(): of the images, in the order they are taken in, the one that the team starts with.
//
// - start_arrive(), start_wait(): around the first phase; peers' shared memory may be written only after it.
//
// - spread(a, i, n): own elements i .. i + n of the replicated array a, written locally and block synchronised, to all.
//
// - arrive(), wait(): a barrier of the team in halves; what was spread before `arrive` is readable after `wait` and
//   fetch(a, n), which makes the first n elements of a readable locally; or element i alone by read(a, i).
//
// - publish4(token, d, x): a token's metric at d, where peers cannot reach it in shared memory.
//
// - metric4(own_metric, block_tokens, Dp, token, d): any token's metric, four floats at d.
#pragma once

namespace visionzip::cuda {

class ClusterTeam;  // team_cluster.cuh
class GridTeam;     // team_grid.cuh

}  // namespace visionzip::cuda

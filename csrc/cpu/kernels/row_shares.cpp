#include "cpu/kernels/row_shares.h"

#include <algorithm>

namespace visionzip::cpu {

// Work: rows that are read and written.  Whole rows, because a thread then walks through its own pages only (577 x 1024
// float32 from memory by two threads: 99 us, by halves of each row 122 us).
std::vector<RowShare> share_rows(const std::vector<int64_t>& counts, int64_t k, int64_t parts) {
  const auto m = static_cast<int64_t>(counts.size());
  constexpr int64_t kRow = 2;  // read and written; a target's tokens are only read
  int64_t total = kRow * (k + m), done = 0, largest = 0;
  for (const int64_t count : counts) total += count;
  std::vector<RowShare> shares;
  RowShare rows{};
  for (int64_t part = 1; part <= parts; part++) {
    const int64_t before = done, goal = total * part / parts;
    rows.target_begin = rows.target_end;
    while (rows.target_end < m && done + counts[static_cast<size_t>(rows.target_end)] + kRow <= goal) {
      done += counts[static_cast<size_t>(rows.target_end++)] + kRow;
    }
    rows.kept_begin = rows.kept_end;  // kept rows fill up what the targets left
    rows.kept_end += std::min((goal - done) / kRow, k - rows.kept_begin);
    done += kRow * (rows.kept_end - rows.kept_begin);
    largest = std::max(largest, done - before);
    shares.push_back(rows);
  }
  constexpr double kMostAboveMean = 1.25;
  if (parts > 1 && static_cast<double>(largest * parts) > kMostAboveMean * static_cast<double>(total)) shares.clear();
  return shares;
}

}  // namespace visionzip::cpu

// The last accesses to each 4 bytes of memory.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <unordered_map>

#include "races.h"

namespace cuda_emulation::races {

struct Record {
  Origin origin;
  uint32_t block_set;  // of the launch's block sets, and of all launches; 0: an empty record
  uint32_t thread, time;
  uint8_t bytes;  // a bit for each of the four
  Access access;
};

// A word remembers as many accesses; where more are not ordered, the oldest are forgotten.
using Word = std::array<Record, 4>;

class History {
 public:
  Word& operator[](uintptr_t address) {
    const uintptr_t page = address / kPageBytes;
    CacheEntry& entry = cache_[page % cache_.size()];
    if (entry.page != page || entry.words == nullptr) entry = {page, words_of(page)};
    return entry.words[address % kPageBytes / 4];
  }

 private:
  static constexpr uintptr_t kPageBytes = 4096;

  struct CacheEntry {
    uintptr_t page;
    Word* words;
  };

  Word* words_of(uintptr_t page) {
    auto& words = pages_[page];
    if (!words) words = std::make_unique<Word[]>(kPageBytes / 4);
    return words.get();
  }

  std::unordered_map<uintptr_t, std::unique_ptr<Word[]>> pages_;
  std::array<CacheEntry, 64> cache_{};
};

}  // namespace cuda_emulation::races

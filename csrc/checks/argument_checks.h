// Checks of one argument each, and the words of their errors.  What each operator requires is in checks.cpp and
// packed_checks.cpp.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

#include "checks/tensor_info.h"

namespace visionzip {

struct Named {
  const char* name;
  const TensorInfo& tensor;
};

// A rank that an argument may have, and the shape's usual name.
struct Rank {
  int64_t dimensions;
  const char* words;
};

// An expected size: a number, or a letter that stands for any ("H": at least one).
struct Size {
  Size(int64_t number) : number(number) {}      // NOLINT(google-explicit-constructor)
  Size(const char* letter) : letter(letter) {}  // NOLINT(google-explicit-constructor)
  int64_t number = -1;
  const char* letter = nullptr;

  bool accepts(int64_t size) const { return letter ? *letter != 'H' || size > 0 : size == number; }
  std::string words() const { return letter ? letter : std::to_string(number); }
};

[[noreturn]] void fail(const char* op, const std::string& words);

std::string shape_of(const TensorInfo& x);

void check_strided(const char* op, std::initializer_list<Named> tensors);
// remedy: what makes x of a tensor of one rank less, as a method is called.
void check_rank(const char* op, const Named& x, std::initializer_list<Rank> ranks, const char* remedy = nullptr);
void check_dtype(const char* op, const Named& x, std::initializer_list<std::string_view> allowed);
void check_floating(const char* op, std::initializer_list<Named> tensors);  // one of the three floating dtypes
void check_same_device(const char* op, const Named& first, std::initializer_list<Named> others);
// Of a rank that is checked; dimensions behind those expected may have any size.  The error says so where neighbouring
// dimensions have changed places, from `swappable` on: by default not that of images.
void check_fits(const char* op, const Named& x, const Named& base, std::initializer_list<Size> expected,
                size_t swappable = 1, const std::string& suffix = {});

}  // namespace visionzip

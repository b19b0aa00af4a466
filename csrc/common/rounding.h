// Quotients and multiples that are rounded up, of numbers that are not negative.
#pragma once

#include <type_traits>

#include "common/types.h"

namespace visionzip {

template <class T>
VISIONZIP_HOST_DEVICE constexpr T ceil_divide(T x, std::type_identity_t<T> unit) {
  return (x + unit - 1) / unit;
}

template <class T>
VISIONZIP_HOST_DEVICE constexpr T round_up(T x, std::type_identity_t<T> unit) {
  return ceil_divide(x, unit) * unit;
}

}  // namespace visionzip
